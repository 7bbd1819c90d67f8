// Package wording writes numbers as people read them: sizes, times and counts. It is pure.
package wording
