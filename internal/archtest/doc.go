// Package archtest holds the house in order: its tests fail when an import
// points the wrong way, when a pure package learns of clocks or files, when
// test code reaches a program, or when a package has no doc.
package archtest
