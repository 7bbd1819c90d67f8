package settings

import (
	"net/url"
	"regexp"
	"strings"

	"github.com/pgrepmgr/repmgr/conninfo"
)

// A shell word, whatever its quotes; a quote without an end takes the rest.
const shellWord = `(?s:'[^']*(?:'|$)|"(?:\\.|[^"\\])*(?:"|\\?$)|\\.|[^\s'"\\])+`

var (
	secretSetting = regexp.MustCompile(`(?i)(-{0,2}[\w-]*(?:password|passwd|pwd|secret|token)[\w-]*\s*=\s*)` + shellWord)
	secretOption  = regexp.MustCompile(`(?i)(--[\w-]*(?:password|passwd|pwd|secret|token)\s+)` + shellWord)
	secretUser    = regexp.MustCompile(`(://[^\s:/@'"]*:)[^\s]*@`)
)

// redactCommand hides the secrets that a command line commonly holds:
// PGPASSWORD=x, password=x of a conninfo, --password x, scheme://user:x@host.
// A secret in any other place is not recognised: that is what files are for.
func redactCommand(command string) string {
	command = secretUser.ReplaceAllString(command, "${1}"+conninfo.Masked+"@")
	command = secretOption.ReplaceAllString(command, "${1}"+conninfo.Masked)
	return secretSetting.ReplaceAllString(command, "${1}"+conninfo.Masked)
}

// redactURL shows scheme and host only: the path of a webhook is often its key.
func redactURL(address string) string {
	u, err := url.Parse(address)
	switch {
	case address == "":
		return ""
	case err != nil || u.Host == "" || strings.ContainsAny(u.Host, "@"):
		return conninfo.Masked
	case u.User == nil && u.RawQuery == "" && u.Fragment == "" && strings.Trim(u.Path, "/") == "":
		return address
	}
	return u.Scheme + "://" + u.Host + "/" + conninfo.Masked
}
