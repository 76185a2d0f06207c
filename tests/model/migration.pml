/* A VM's live migration as a model for Spin: source, destination, service, a network that loses, repeats and delays, a
 * third host that may take a VM nobody holds, and deaths anywhere. The service's transitions are kms/keys/migrations.py's,
 * the hosts' are keypeer/migration.py's and keypeer/hypervisor/migrate.py's.
 *
 * A call's fate: carried out and answered; carried out and the answer lost; lost; or delayed, to be carried out at any
 * later time. The caller can't tell the last three apart. Losses are few, so that calls end.
 *
 * Mutations for the tests: -DNO_COMPARE (the switchover doesn't compare the owner's generation), -DHASTY (the source goes
 * on after an unanswered switchover without an abort), -DLATE_ABORT (an abort counts after the switchover too),
 * -DEAGER (the destination runs the VM on having it whole, without the switchover), -DSTUCK (nothing lapses or expires).
 */

#define LOSSES 3

mtype:state = { none, begun, accepted, switched, completed, aborted };
mtype:answer = { ok, no, unknown };
mtype:host = { S, D, X };

/* The service, durable. */
mtype:state st = none;
mtype:host owner = S;
byte gen = 1;
bool leased = true;      /* the owner's lease lives */
bool good = true;        /* the destination satisfies the policy */

/* The network. */
byte lost = 0;
bool late_switch = false, late_abort = false;

/* The hosts. */
bool runs_S = true, runs_D = false, runs_X = false;
bool dead_S = false, dead_D = false;
bool out_S = false;      /* the source's lease ended: it stopped the VM and goes on no more */
bool sent = false;       /* the VM's last bytes have left the source */
bool listens = false;    /* the destination has the key in the role incoming, and takes the VM in */
bool gave_up = false;

#define alone (runs_S + runs_D + runs_X <= 1)

/* Never two hosts that run the VM. */
#define check() assert(alone)


inline handle_begin(reply) {
    if
    :: st == none && owner == S && leased && good -> st = begun; reply = ok
    :: st == begun || st == accepted -> reply = ok          /* the same id again */
    :: else -> reply = no
    fi
}

inline handle_accept(reply) {
    if
    :: (st == begun || st == accepted) && owner == S && gen == 1 && leased && good -> st = accepted; reply = ok
    :: else -> reply = no
    fi
}

inline handle_switch(reply) {
    if
    :: st == switched || st == completed -> reply = ok
#ifdef NO_COMPARE
    :: st == accepted && good -> st = switched; owner = D; gen++; leased = true; reply = ok
#else
    :: st == accepted && owner == S && gen == 1 && leased && good -> st = switched; owner = D; gen++; reply = ok
#endif
    :: else -> reply = no
    fi
}

inline handle_abort(reply) {
    if
    :: st == begun || st == accepted || st == aborted -> st = aborted; reply = ok
#ifdef LATE_ABORT
    :: st == switched -> st = aborted; owner = S; gen++; reply = ok
#endif
    :: else -> reply = no
    fi
}

/* The fate of one call whose handling is `handle`; `later` marks that it still lies in the network. */
#define CALL(dead, handle, reply, later)                                            \
    atomic {                                                                        \
        if :: dead -> goto finished :: else fi;                                     \
        if                                                                          \
        :: handle(reply)                                                            \
        :: lost < LOSSES -> lost++; handle(reply); reply = unknown                  \
        :: lost < LOSSES -> lost++; reply = unknown                                 \
        :: lost < LOSSES && !later -> lost++; later = true; reply = unknown         \
        fi                                                                          \
    }

active proctype Source() {
    mtype:answer reply;
    bool nothing = false;

    CALL(dead_S, handle_begin, reply, nothing);
    do
    :: reply == unknown -> nothing = false; CALL(dead_S, handle_begin, reply, nothing)
    :: else -> break
    od;
    if :: reply == no -> goto finished :: else fi;

    /* Memory flows while the VM runs; then it stands still. The source may also think better of it. */
    if
    :: listens -> skip
    :: st == aborted || dead_D || gave_up -> goto take_back
    fi;
    atomic { if :: !out_S && runs_S -> runs_S = false :: else -> goto finished fi };

fence:
    CALL(dead_S, handle_switch, reply, late_switch);
    if
    :: reply == ok -> atomic { if :: !dead_S -> sent = true :: else fi }; goto finished
    :: reply == unknown -> goto fence
#ifdef HASTY
    :: reply == unknown -> goto go_on
#endif
    :: reply == unknown -> goto take_back
    :: reply == no -> goto take_back
    fi;

take_back:                 /* only an abort that was carried out makes sure that no switchover comes any more */
    CALL(dead_S, handle_abort, reply, late_abort);
    if
    :: reply == ok -> goto go_on
    :: reply == unknown -> goto take_back
    :: reply == no && (st == switched || st == completed) -> atomic { if :: !dead_S -> sent = true :: else fi };
       goto finished
    :: reply == no && st == none -> goto finished
    fi;

go_on:
    atomic { if :: !dead_S && !out_S && !sent -> runs_S = true; check() :: else fi };

finished:
    skip
}

active proctype Destination() {
    mtype:answer reply;
    bool nothing = false;

    st == begun || st == aborted || st == none && (dead_S || out_S);
    do
    :: dead_D -> goto given_up
    :: !dead_D && st == begun || st == accepted ->
        nothing = false; CALL(dead_D, handle_accept, reply, nothing);
        if
        :: reply == ok -> listens = true; break
        :: reply == unknown -> skip
        :: reply == no -> goto given_up
        fi
    :: !dead_D && !(st == begun || st == accepted) -> goto given_up
    od;

    /* The VM arrives whole, or its source is dead. */
    if
#ifdef EAGER
    :: listens -> skip
#endif
    :: sent -> skip
    :: dead_S || out_S || st == aborted -> skip
    fi;
#ifdef EAGER
    atomic { if :: !dead_D -> runs_D = true; check() :: else fi };
#else
    /* Whole or started anew: either way only as the owner. */
    if
    :: atomic { owner == D && leased && !dead_D -> runs_D = true; check() };
       atomic { if :: st == switched -> st = completed :: else fi }
    :: owner != D && (st == aborted || dead_S || out_S) -> skip
    :: dead_D -> skip
    fi;
#endif
    goto finished;
given_up:
    gave_up = true;
finished:
    /* Whoever owns the VM may start it anew, by a release like any other. */
end:
    do
    :: atomic { owner == D && leased && !dead_D && !runs_D -> runs_D = true; check() }
    od
}

/* Messages that were delayed arrive. */
active proctype Late() {
    mtype:answer reply;
end:
    do
    :: atomic { late_switch -> late_switch = false; handle_switch(reply) }
    :: atomic { late_abort -> late_abort = false; handle_abort(reply) }
    od
}

/* Time and misfortune: a hand-over lapses, a host goes bad or good again, hosts die, leases end. */
active proctype Time() {
end:
    do
#ifndef STUCK
    :: atomic { (st == begun || st == accepted) && (dead_S || dead_D || out_S) -> st = aborted }
    :: atomic { leased && owner == S && dead_S -> leased = false }
    :: atomic { leased && owner == D && dead_D -> leased = false }
#endif
    :: atomic { !leased && !runs_X -> owner = X; gen++; leased = true; runs_X = true; check() }
    od
}

active proctype Misfortune() {
    byte turns = 0;
end:
    do
    :: turns < 3 ->
        turns++;
        if
        :: atomic { !dead_S -> dead_S = true; runs_S = false }
        :: atomic { !dead_D -> dead_D = true; runs_D = false }
        :: good = !good
        /* Cut off for longer than lease and grace: its agent stops the VM before anybody else may have it. */
        :: atomic { owner == S && leased -> out_S = true; runs_S = false; leased = false }
        :: atomic { st == begun || st == accepted -> st = aborted }   /* it took too long */
        :: skip
        fi
    :: turns >= 3 -> break
    od
}

/* Whatever dies: in the end somebody runs the VM, or may start it (X). */
ltl somebody { [] <> (runs_S || runs_D || runs_X) }
ltl never_two { [] (runs_S + runs_D + runs_X <= 1) }
ltl no_abort_after { [] (st == switched -> [] (st != aborted)) }

/* What must be possible, so that the properties aren't empty; each is expected to fail. */
ltl never_completed { [] (st != completed) }
ltl never_aborted { [] (st != aborted) }
ltl never_moved_by_a_late_call { [] !(late_switch && st == switched) }
ltl never_taken_by_a_third { [] !runs_X }
