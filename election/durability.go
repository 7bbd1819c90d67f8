package election

// Durability says what a commit waits for when no standby is left that could have it.
type Durability string

const (
	DurabilityPreferred Durability = "preferred" // for nobody: the primary goes on, and nobody can take its place until a standby is back
	DurabilityRequired  Durability = "required"  // for a standby: writes wait until one is back
)
