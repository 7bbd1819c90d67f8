// Package shell runs the commands that an operator has configured, and the programs of
// PostgreSQL. A value never becomes part of a program's text; a command ends with its
// context, together with all that it started, and never asks a person.
package shell
