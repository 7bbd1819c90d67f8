// Package bench holds the project to its promises of speed and size: start-up,
// cluster show, the status views, an idle daemon, and a clone of 2 GB, each
// measured beside its peer in the same run, with real servers and real
// programs. It has only tests, and those are skipped unless "make bench" runs
// them.
//
// The peers are the C repmgr 5 (Debian's postgresql-NN-repmgr), pg_basebackup,
// cp and rsync. Where a limit falls short the run ends with an error. A peer that is not installed leaves its column empty.
//
// # Environment
//
//   - REPMGR_BENCH=1: measure. Otherwise every test is skipped.
//   - REPMGR_BENCH_BIN: the directory of our repmgr and repmgrd.
//   - REPMGR_BENCH_JSON: the file for the figures, with every sample. Defaults
//     to none.
//   - REPMGR_BENCH_PAGE: the file for the page of the manual, where everything was
//     measured. Defaults to none. Its text is testdata/page.md.
//   - REPMGR_BENCH_LONG=1: the status views over 30 million rows, too, and 100 kills under the eyes of clients.
//   - TMPDIR: where servers and copies live. "make bench" sets it to a new
//     directory in REPMGR_BENCH_DIR, by default /var/tmp: a real disk.
package bench
