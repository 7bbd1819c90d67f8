// Package namesakes finds another server that streams from the local primary under the name
// of a registered node: what that one acknowledges the node may not have, so a commit that
// waits for it waits for nothing.
//
// One look proves nothing, because the WAL sender of a connection that broke lives on for a
// while. So a server is called a namesake only where it is seen to acknowledge what was
// written after it was first suspected, or where one of two is at an address that is surely
// not the node's. What was found holds until nothing suspicious streams any more, and there
// is one event for it. A name that does not resolve is no evidence, and is not waited for.
package namesakes
