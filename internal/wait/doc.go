// Package wait is a pause that ends with its context.
package wait
