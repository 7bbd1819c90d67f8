package repmgr

// PinNames are the settings that go along when a session of ours is opened.
func PinNames() []string {
	parameters := map[string]string{}
	pinSession(parameters)
	return sortedKeys(parameters)
}
