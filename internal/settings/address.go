package settings

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// List are the parts of a value that are joined by commas.
func List(s string) (all []string) {
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			all = append(all, part)
		}
	}
	return all
}

// BadSockets returns what is wrong with a list of sockets: paths, or addresses and ports.
func BadSockets(s string) string {
	list := List(s)
	for i, one := range list {
		if slices.Contains(list[:i], one) {
			return "names " + one + " twice"
		}
		if !filepath.IsAbs(one) && BadListen(one) != "" {
			return "must be paths, such as /run/haproxy/admin.sock, or addresses and ports, such as 192.0.2.1:9999, joined by commas"
		}
	}
	return ""
}

// BadWord returns what is wrong with a name that other programs read.
func BadWord(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || strings.ContainsRune(`;/\"'`, r) }) {
		return "must be one word, without quotes, semicolons and slashes"
	}
	return ""
}

// ParsePrefix reads an address with the length of the prefix of its network, which defaults to all of it.
func ParsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

// BadPrefix returns what is wrong with the address of one machine.
func BadPrefix(s string) string {
	p, err := ParsePrefix(s)
	if a := p.Addr(); s != "" && (err != nil || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Is4In6()) {
		return "must be an address of one machine, such as 192.0.2.10/24 or 2001:db8::10/64"
	}
	return ""
}
