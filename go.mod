module github.com/pgrepmgr/repmgr

go 1.25.0
