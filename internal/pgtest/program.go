package pgtest

import (
	"encoding/csv"
	"io"
	"net"
	"os/exec"
	"strings"
	"time"
)

// Program is where a program is: in PATH, or where daemons are, which users do not have in PATH.
func Program(name string) (path string, err error) {
	if path, err = exec.LookPath(name); err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	return path, err
}

// HAProxyUp are the servers of a section of a HAProxy that get connections, by its runtime socket.
func HAProxyUp(socket, section string) (names []string, err error) {
	c, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err = io.WriteString(c, "show stat\n"); err != nil {
		return nil, err
	}
	rows, err := csv.NewReader(c).ReadAll()
	if err != nil {
		return nil, err
	}
	status := 17 // the column of the state, by the manual of HAProxy
	for _, row := range rows {
		if len(row) > status && row[0] == section && strings.HasPrefix(row[1], "node") && (strings.HasPrefix(row[status], "UP") || row[status] == "no check") {
			names = append(names, row[1])
		}
	}
	return names, nil
}
