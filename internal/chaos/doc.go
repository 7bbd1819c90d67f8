// Package chaos breaks real clusters and looks whether what was promised holds.
// It is black box: it drives the programs repmgr and repmgrd with their
// configuration files, real PostgreSQL and real etcd, and judges from outside:
// by what clients were told, by which rows are there afterwards, and by what the
// servers log of their promotions. It imports nothing of this module but the library of one of its
// clients, and nothing imports it.
//
//	make chaos                                   1,000 faults, about an hour
//	make chaos CHAOSFLAGS="-faults 20 -v"        some
//	make chaos CHAOSFLAGS="-outage 100"          outages, beside repmgr 5, alone on the machine
//	make chaos CHAOSFLAGS="-ext4 -faults 100"    also disks that stall: each is an ext4 that is frozen, and WAL has one of its own
//	make soak                                    an hour of bad weather: no failover may happen
//	go test ./internal/chaos                     a short form, where root and namespaces are to be had
//
// The report is written to bin/chaos: report.md, report.json with every fault,
// outages.svg, and findings with the logs of every fault that fell short. The exit
// code is 1 where the product fell short, 2 where the harness itself had trouble.
//
// # A run
//
// A run is a seed: topology, synchronous_mode, and the sequence of faults with
// their targets and times follow from it (and from -per-run, -topology, -mode,
// -only and -pairs: the lists that it chooses from). One cluster is set up with
// the command line as a DBA would, then meets its faults one after the other.
// Before each, all is well: one primary, every other node streams, metadata and
// newest rule agree, rows are acknowledged. After each, that must be so again
// within two minutes; a cluster that does not heal is counted and made anew. In runs
// of an even seed servers are screened before they are started (repmgr node screen).
//
//	bin/chaos.test chaos -seed 17 -faults 25 -jobs 1 -v -keep     replays run 17
//	bin/chaos.test chaos -only "cut primary off" -topology 5 -mode off -faults 1 -per-run 1 -v
//	bin/chaos.test chaos -each -topology 3+witness -v             every nemesis once
//	bin/chaos.test chaos -help
//
// The order of events inside servers does not follow from a seed: a replay meets
// the same faults at the same moments, not always the same race.
//
// # Clients
//
// The main client commits a row every 5 ms through a DSN of all data nodes with
// target_session_attrs=read-write, and retries at once. On every data node's
// machine another one does so every 25 ms: so there is a client on each side of
// every cut. Every acknowledged row is looked for afterwards. A commit that ended
// in an error may or may not be there: it counts for nothing.
//
// A reader looks ten times in a second, on whoever takes writes, whether it sees the
// newest rows that had been acknowledged to the others before it asked. One that is missing
// on a primary of the same or a later term counts, also where it is there in the end
// (with synchronous_mode=off: of the same term).
//
// Two clients of package pgfollow, one of them on the first node's machine, commit a row every 50 ms, and ask after each fault what became of those whose
// COMMIT got no answer, and of some that had one, those that are lost among them. Where it is told that a commit is committed the row must be
// there, and where it is told that it was aborted or is lost, it must not. "Unknown" is counted.
//
// What a server acknowledges that somebody promoted by hand is nobody's promise: only
// for how long it does so is judged.
//
// # Where it runs
//
// Each node has a network namespace of its own, with a cable to a bridge that is
// in the run's namespace; the run has its own PID, mount, IPC and network
// namespace. When it ends, by SIGKILL even, the kernel ends all of it: nothing has
// to be cleaned up, nothing is left in the host's namespaces. Data directories
// are on a tmpfs: an fsync costs nothing there. Packets are dropped with
// iptables, where they arrive; they are delayed and lost by a program that the
// kernel queues them to (see [Weather]), because not every kernel has netem.
//
// With -plain, and without root, all nodes are processes of this machine: then
// there are the faults of processes only, and whatever kills the harness itself
// leaves servers behind.
//
// A machine is suspended by stopping all of its processes: server, daemon and
// watchdog at once. The clocks go on meanwhile, CLOCK_BOOTTIME and CLOCK_MONOTONIC
// alike: that the one runs on and the other does not, as when a host suspends a
// virtual machine, can not be had here.
//
// Settings are the shipped defaults with failover=automatic, and
// failovers_per_hour=-1, because a run has more failovers in an hour than any
// cluster should.
package chaos
