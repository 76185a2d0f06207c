/* A VM's live migration as a model for Spin: source, destination, service, a network that loses, repeats and delays, a
 * third host that may take a VM nobody holds, and deaths anywhere. The service's transitions are kms/keys/migrations.py's,
 * the hosts' are keypeer/migration.py's and keypeer/hypervisor/migrate.py's.
 *
 * A call's fate: carried out and answered; carried out and the answer lost; lost; or delayed, to be carried out at any
 * later time. The caller can't tell the last three apart. Losses are few, so that calls end.
 *
 * Mutations for the tests: -DNO_COMPARE (the switchover doesn't compare the owner's generation), -DHASTY (the source goes
 * on after an unanswered switchover without an abort), -DLATE_ABORT (an abort counts after the switchover too),
 * -DEAGER (the destination runs the VM on having it whole, without the switchover), -DSTUCK (nothing lapses or expires),
 * -DNO_WORD (the destination runs the VM as soon as it owns it, without the source's word), -DNO_LOOK_D (it runs the VM
 * on that word without looking whether it owns it still), -DNO_LOOK_S (the source goes on after its abort without looking
 * whether it owns the VM still), -DNO_WAIT (the source's word is waited for without end).
 */

#define LOSSES 3

mtype:state = { none, begun, accepted, switched, completed, aborted };
mtype:answer = { ok, no, unknown };
mtype:host = { S, D, T };

/* The service, durable. */
mtype:state st = none;
mtype:host owner = S;
byte gen = 1;
bool leased = true;      /* the owner's lease lives */
bool good = true;        /* the destination satisfies the policy */
bool said = false;       /* the source said that its copy runs no more */
bool over = false;       /* the lease that the source had at the switchover is over, with its grace */

/* The network. */
byte lost = 0;
bool late_switch = false, late_abort = false;

/* The hosts. */
bool runs_S = true, runs_D = false, runs_T = false;
bool dead_S = false, dead_D = false;
bool out_S = false;      /* the source's lease ended: it stopped the VM and goes on no more */
bool out_D = false;      /* the destination was cut off for longer than its lease: it stopped the VM */
bool slips = false;      /* the hypervisor lets the source's copy run for an instant */
bool sent = false;       /* the VM's last bytes have left the source */
bool listens = false;    /* the destination has the key in the role incoming, and takes the VM in */
bool gave_up = false;

#ifdef NO_WORD
#define word true
#else
#define word (said || over)
#endif
#ifdef NO_LOOK_D
#define d_owns (st == switched || st == completed)
#else
#define d_owns (owner == D && gen == 2 && leased)
#endif
#ifdef NO_LOOK_S
#define s_owns true
#else
#define s_owns (owner == S && gen == 1 && leased)
#endif

#define alone (runs_S + runs_D + runs_T <= 1)

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

inline handle_leave(reply) {
    if
    :: st == switched || st == completed -> said = true; reply = ok
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
    :: reply == ok -> goto handed
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
    :: reply == no && (st == switched || st == completed) -> goto handed
    :: reply == no && st == none -> goto finished
    fi;

go_on:
    atomic { if :: !dead_S && s_owns && !sent -> runs_S = true; check() :: else fi };
    goto finished;

handed:                    /* the last bytes; where they go wrong the hypervisor lets the copy run until it is stopped */
    atomic { if :: !dead_S && !out_S -> sent = true :: else -> goto finished fi };
    if
    :: atomic { !dead_S && !out_S -> slips = true; runs_S = true; check() };
       atomic { runs_S = false; slips = false }
    :: skip
    fi;
say:
    CALL(dead_S, handle_leave, reply, nothing);
    if
    :: reply == unknown -> nothing = false; goto say
    :: else -> skip
    fi;

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
    /* Whole or started anew: either way only as the owner, and once the source's copy runs no more. */
    if
    :: atomic { d_owns && word && !dead_D -> runs_D = true; check() };
       atomic { if :: st == switched && owner == D -> st = completed :: else fi }
    :: owner != D && (st == aborted || dead_S || out_S || owner == T) -> skip
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
    :: atomic { d_owns && word && !dead_D && !runs_D -> runs_D = true; check() }
    :: atomic { owner == D && !leased && !dead_D -> leased = true }     /* renewed: nobody took the VM meanwhile */
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
    /* What a host holds keeps others out for no shorter than what it replaced (kms.keys.leases.kept_out). */
    :: atomic { leased && owner == D && dead_D && over -> leased = false }
#endif
#ifndef NO_WAIT
    :: atomic { (st == switched || st == completed) && !over && (said || dead_S || out_S) -> over = true }
#endif
    :: atomic { !leased && !runs_T -> owner = T; gen++; leased = true; runs_T = true; check() }
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
        :: atomic { owner == D && leased && over -> out_D = true; runs_D = false; leased = false }
        /* No word until the source's lease is over with its grace: its agent has stopped the copy by then. */
        :: atomic { st == switched -> over = true; out_S = true; runs_S = false }
        :: atomic { st == begun || st == accepted -> st = aborted }   /* it took too long */
        :: skip
        fi
    :: turns >= 3 -> break
    od
}

/* Whatever dies: in the end somebody runs the VM, or may start it (T). */
ltl somebody { [] <> (runs_S || runs_D || runs_T) }
ltl never_two { [] (runs_S + runs_D + runs_T <= 1) }
/* The source's copy runs on no more once the destination owns the VM, and what a third host took stays with it. */
ltl fenced { [] !(st == switched && runs_S && !slips) }
ltl kept { [] (owner == T -> [] (owner == T)) }
ltl no_abort_after { [] (st == switched -> [] (st != aborted)) }

/* What must be possible, so that the properties aren't empty; each is expected to fail. */
ltl never_completed { [] (st != completed) }
ltl never_aborted { [] (st != aborted) }
ltl never_moved_by_a_late_call { [] !(late_switch && st == switched) }
ltl never_taken_by_a_third { [] !runs_T }
ltl never_slips { [] !slips }
ltl never_back_after_a_cut { [] !(out_D && runs_D) }
