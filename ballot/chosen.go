package ballot

// ChosenMark at the end of a ballot's candidate says that the ballot's node won
// that election: should its coordinator die, it takes office by itself.
const ChosenMark = "!"
