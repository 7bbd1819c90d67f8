// Package conffile reads the grammar of postgresql.conf, which repmgr.conf shares: lines of
// a key and a value, quoted or plain, comments, and includes. It knows no key. What is wrong
// comes back with its file and line, all of it, and quotes nothing that may be a secret;
// files, their size and the depth of includes are bounded.
package conffile
