package chaos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgrepmgr/repmgr/pgfollow"
)

// try is what the asker was told of one row.
type try struct {
	ID    int64
	Tx    pgfollow.Transaction
	Acked bool
	Open  bool // no answer to its COMMIT; neither: it certainly was not committed
}

// asker is a client of pgfollow. It commits rows, and asks afterwards what became of those whose COMMIT got no
// answer. Safe for concurrent use.
type asker struct {
	id       int
	f        *pgfollow.Follower
	pool     *pgxpool.Pool
	patience atomic.Int64 // time.Duration of one try
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu    sync.Mutex
	tries []try
}

const (
	askerID   = 90 // of the first, as a client, on the machine of the main client; the next one is on that of the first node
	askEvery  = 50 * time.Millisecond
	askLimit  = 10 * time.Second // for one
	asksLimit = 30 * time.Second // for all
	askAround = 20               // tries before and after one without an answer that are asked of, too
)

func (c *cluster) startAsker(id int, m *machine, nodes []*node) (*asker, error) {
	f, err := pgfollow.New(c.dsn(nodes)+" pool_max_conns=3", pgfollow.Dial(m.dial))
	if err != nil {
		return nil, err
	}
	pool, err := f.Pool(c.ctx)
	if err != nil {
		f.Close()
		return nil, err
	}
	a := &asker{id: id, f: f, pool: pool}
	a.waits(tryLimit)
	ctx, cancel := context.WithCancel(c.ctx)
	a.cancel = cancel
	a.wg.Go(func() { a.run(ctx) })
	return a, nil
}

func (a *asker) stop() {
	a.cancel()
	a.wg.Wait()
	a.pool.Close()
	a.f.Close()
}

func (a *asker) waits(d time.Duration) { a.patience.Store(int64(d)) }

func (a *asker) run(ctx context.Context) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for id := int64(1); ctx.Err() == nil; id++ {
		t := a.try(ctx, id)
		a.mu.Lock()
		a.tries = append(a.tries, t)
		a.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (a *asker) try(ctx context.Context, id int64) try {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(a.patience.Load()))
	defer cancel()
	t := try{ID: id}
	err := pgfollow.Retry(ctx, a.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, fmt.Sprintf("INSERT INTO chaos VALUES (%d, %d)", a.id, id))
		if err == nil {
			t.Tx, err = pgfollow.Identify(ctx, tx)
		}
		return err
	})
	var unknown *pgfollow.CommitUnknownError
	if t.Acked, t.Open = err == nil, errors.As(err, &unknown); t.Open {
		t.Tx = unknown.Transaction
	}
	return t
}

// answers is what became of commits without an answer, as the asker was told.
type answers struct {
	Outcomes map[pgfollow.Outcome]int `json:"outcomes,omitempty"` // of those without an answer
	Others   map[pgfollow.Outcome]int `json:"others,omitempty"`   // of some around them, and of what was lost, which had one
	Why      map[string]int           `json:"why,omitempty"`      // the outcome is unknown
	Wrong    []string                 `json:"wrong,omitempty"`    // what the rows contradict
}

// add adds what another client was told.
func (a *answers) add(b answers) {
	count(&a.Outcomes, b.Outcomes)
	count(&a.Others, b.Others)
	count(&a.Why, b.Why)
	a.Wrong = append(a.Wrong, b.Wrong...)
}

func count[K comparable](to *map[K]int, from map[K]int) {
	if *to == nil {
		*to = map[K]int{}
	}
	for k, n := range from {
		(*to)[k] += n
	}
}

// take asks of what happened since the last call, and compares it with the rows of the primary.
func (a *asker) take(ctx context.Context, primary *node) (answers, error) {
	found := answers{Outcomes: map[pgfollow.Outcome]int{}, Others: map[pgfollow.Outcome]int{}, Why: map[string]int{}}
	a.mu.Lock()
	tries := a.tries
	a.tries = nil
	a.mu.Unlock()
	if len(tries) == 0 {
		return found, nil
	}
	before, err := a.rows(ctx, primary, tries[0].ID)
	if err != nil {
		return found, err
	}
	told := map[int64]pgfollow.Outcome{}
	asking, end := context.WithTimeout(ctx, asksLimit)
	defer end()
	for i, t := range tries {
		near := slices.ContainsFunc(tries[max(0, i-askAround):min(len(tries), i+askAround)], func(n try) bool { return n.Open })
		doubtful := t.Acked && (near || !before[t.ID])
		if !t.Open && !doubtful {
			continue
		}
		limited, cancel := context.WithTimeout(asking, askLimit)
		outcome, why := pgfollow.OutcomeOf(limited, a.pool, t.Tx)
		cancel()
		if told[t.ID] = outcome; t.Open {
			found.Outcomes[outcome]++
		} else {
			found.Others[outcome]++
		}
		if why != nil {
			found.Why[errors.Unwrap(why).Error()]++
		}
	}
	there, err := a.rows(ctx, primary, tries[0].ID)
	if err != nil {
		return found, err
	}
	for _, t := range tries {
		if text := contradicts(t, told[t.ID], there[t.ID]); text != "" {
			found.Wrong = append(found.Wrong, fmt.Sprintf("row %d of client %d: %s (%+v)", t.ID, a.id, text, t.Tx))
		}
	}
	return found, nil
}

// rows are those of the client that the primary has.
func (a *asker) rows(ctx context.Context, primary *node, from int64) (map[int64]bool, error) {
	there := map[int64]bool{}
	err := primary.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
		rows, _ := c.Query(ctx, "SELECT id FROM chaos WHERE client = $1 AND id >= $2", a.id, from)
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		for _, id := range ids {
			there[id] = true
		}
		return err
	})
	return there, err
}
