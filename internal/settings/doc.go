// Package settings is the machinery below a configuration: a [Table] connects the keys of a
// file with the fields of any struct, and from it come defaults, parsing, checks, dumping,
// redaction and what a reload may change. It knows no key.
//
//	var keys = settings.Table[Config]{
//		settings.Int("priority", 0, 100, func(c *Config) *int { return &c.Priority }),
//		settings.Command("promote_command", "", func(c *Config) *string { return &c.PromoteCommand }).OnReload(),
//	}
//
// A value that is wrong leaves its field as it was and comes back as a fault, with its file
// and line; everything that is wrong comes back at once. No fault and nothing that is shown
// holds the secrets of a connection string, a command line or a webhook's address.
package settings
