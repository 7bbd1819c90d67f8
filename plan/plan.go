// Package plan describes what a command that changes a cluster is going to do: its steps in
// order, each with its check, its effect and how it is undone, and what stands in its way. It
// contains no actions; the command that made a plan carries it out.
package plan

import "fmt"

// Plan is what a command is going to do.
type Plan struct {
	Command   string     `json:"command"`   // for example "standby switchover"
	Steps     []Step     `json:"steps"`     // in the order in which they are done
	Obstacles []Obstacle `json:"obstacles"` // empty: the command can begin
	Warnings  []Obstacle `json:"warnings"`  // these do not keep it from beginning
}

// Step is one step of a plan.
type Step struct {
	Name   string `json:"step"`            // the name in the log, in the journal and in the result
	Node   string `json:"node"`            // the name of the node on which it is done
	Effect string `json:"effect"`          // what it changes
	Check  string `json:"check,omitempty"` // what must be true before the next step begins
	Undo   string `json:"undo,omitempty"`  // what happens where it fails, or the command ends here; empty: there is nothing to undo
}

// Obstacle is one reason why a command can not begin, or a warning.
type Obstacle struct {
	Code  string `json:"code"`            // does not change in later versions
	Node  string `json:"node,omitempty"`  // the name of the node that it is about; empty: it is about the cluster
	Text  string `json:"text"`            // for people
	Hint  string `json:"hint,omitempty"`  // what to do about it
	Force bool   `json:"force_overrides"` // the option --force overrides it
}

// String is the obstacle as a sentence without a full stop.
func (o Obstacle) String() string {
	if o.Node == "" {
		return o.Text
	}
	return fmt.Sprintf("%s: %s", o.Node, o.Text)
}

// Standing are the obstacles that remain. With force, those that it overrides are left out.
func (p Plan) Standing(force bool) (left []Obstacle) {
	for _, o := range p.Obstacles {
		if !force || !o.Force {
			left = append(left, o)
		}
	}
	return left
}
