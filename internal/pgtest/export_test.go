package pgtest

// Free is free, for its test.
var Free = free
