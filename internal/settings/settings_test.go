package settings

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/conffile"
)

// A table works for any struct.
func TestTable_IsForAnyStruct(t *testing.T) {
	t.Parallel()
	type oven struct {
		Heat    int
		Bake    time.Duration
		Command string
		Moves   map[string]string
	}
	keys := Table[oven]{
		Int("heat", 1, 180, func(o *oven) *int { return &o.Heat }).OnReload().Formerly("temperature"),
		Time("bake", time.Minute, 0, time.Hour, func(o *oven) *time.Duration { return &o.Bake }),
		Command("command", "", func(o *oven) *string { return &o.Command }),
		Mapping("move", func(o *oven) *map[string]string { return &o.Moves }),
	}
	var o oven
	keys.Fill(&o)
	def := o
	entries, broken := conffile.Parse("/oven.conf", []byte("temperature = 200\nbake = 90\ncommand = 'x --token hunter2'\nmove = '/a=/b'\nmove = '/c=/d'\nheet = 1\n?\nbake = '-1'"))
	r := keys.Take(&o, entries, broken)
	require.Equal(t, oven{200, time.Hour, "x --token hunter2", map[string]string{"/a": "/b", "/c": "/d"}}, o)
	require.Len(t, r.Faults, 2)
	require.Equal(t, []int{7, 8}, []int{r.Faults[0].Line, r.Faults[1].Line})
	require.Equal(t, map[string]bool{"bake": true}, r.Bad)
	require.Len(t, r.Warnings, 2)
	require.Equal(t, `write "heat"`, r.Warnings[0].Remedy)
	require.Equal(t, `did you mean "heat"?`, r.Warnings[1].Remedy)
	require.Equal(t, `heat="200" command="x --token ***" move="/a=/b, /c=/d" `, keys.Differences(&o, &def))

	reloadable, others := keys.Changed(&o, &def)
	require.Equal(t, []string{"heat"}, reloadable)
	require.Equal(t, []string{"command", "move"}, others)
	keys.Reload(&o, &def)
	require.Equal(t, 180, o.Heat)
	require.NotEmpty(t, o.Command)

	o.Heat = -1
	faults, bad := keys.Check(&o, r.Places)
	require.Len(t, faults, 1)
	require.Zero(t, faults[0].Line, "the file says another value")
	require.Empty(t, keys.Conflicts(&o, r.Places, bad, Expect(false, "heat", "is too much for", "bake", "")))
	clash := keys.Conflicts(&o, r.Places, nil, Expect(false, "heat", "is too much for", "bake", ""))
	require.Equal(t, `is too much for "bake" = "60"`, clash[0].Problem)
	require.Equal(t, 8, clash[0].Line, "the line of the other one is to blame")
}

func TestRedactURL_ShowsTheHostOnly(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"":                          "",
		"https://h.example:8443/":   "https://h.example:8443/",
		"https://u:p@h.example":     "https://h.example/***",
		"http://h.example/key":      "http://h.example/***",
		"https://h.example?key=1":   "https://h.example/***",
		"hooks.example/key":         "***",
		"https://h.example/%zz/key": "***",
	} {
		if got := redactURL(address); got != want {
			t.Errorf("redactURL(%q) = %q, want %q", address, got, want)
		}
	}
}

// Addresses and networks are taken as they are written; what is neither is refused with what to write instead.
func TestNetworks(t *testing.T) {
	t.Parallel()
	type door struct{ From []netip.Prefix }
	k := Networks("from", func(d *door) *[]netip.Prefix { return &d.From })
	var d door
	for text, want := range map[string]string{
		"": "", "192.168.1.7": "192.168.1.7", " 10.0.0.0/24 , ::1,fd00::/8,": "10.0.0.0/24,::1,fd00::/8", "::ffff:10.0.0.7": "::ffff:10.0.0.7", "0.0.0.0/0": "0.0.0.0/0",
	} {
		require.Empty(t, k.Set(&d, text), text)
		require.Equal(t, want, k.Get(&d), text)
	}
	before := k.Get(&d)
	for _, text := range []string{"db1.example", "10.0.0.1,localhost", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "fe80::1%eth0", "fe80::%eth0/64", "10.0.0", "10.0.0.1-10.0.0.9", "*", "[::1]"} {
		require.Contains(t, k.Set(&d, text), "names are not looked up", text)
	}
	require.Contains(t, k.Set(&d, " , "), "an empty list would allow all")
	require.Equal(t, before, k.Get(&d), "what is wrong changes nothing")
	require.NotEmpty(t, k.check(&door{[]netip.Prefix{{}}}))
	require.Empty(t, k.check(&d))
}
