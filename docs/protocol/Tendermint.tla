----------------------------- MODULE Tendermint -----------------------------
(***************************************************************************)
(* How the members of one chain agree, as edgepool/core/consensus does it. *)
(* The prose is in consensus.md; the names of rules here are the names of  *)
(* methods there ("engine" is engine.py, "ballot" is ballot.py).           *)
(*                                                                         *)
(* What is left out, and why nothing is lost by it:                        *)
(*                                                                         *)
(*  - Time.  A timeout may fire whenever its rule allows it, so every      *)
(*    setting of every timeout is covered.                                 *)
(*  - The network.  A message once sent can be read by anybody at any      *)
(*    later moment, or never: loss, delay, reordering, duplication and     *)
(*    partitions are all of them cases of "not read yet".                  *)
(*  - The lottery.  Any member may lead any round of any height, the same  *)
(*    one in all rounds if it must be.  That covers every weighting, every *)
(*    beacon, and a lottery that somebody has learnt to cheat.             *)
(*  - The Byzantine member.  It has always signed every vote there is, and *)
(*    where it leads it has made every proposal there is.  Whoever counts  *)
(*    votes counts its vote, if that suits the member that counts worst.   *)
(*  - The valid value of Algorithm 1.  It is only ever read by a leader,   *)
(*    and says which polka the leader has heard of.  So it is no variable: *)
(*    a leader proposes any block with a polka that it could have heard of *)
(*    and that is not older than its lock, or a new block if it has no     *)
(*    lock.  That allows all that the engine does, and more.               *)
(*  - What a member has written down.  It persists with every signature    *)
(*    and nothing in between (engine, _finish), so what it finds after a   *)
(*    restart is a function of the votes that it has sent: see Restart.    *)
(***************************************************************************)
EXTENDS Integers, FiniteSets, TLC

CONSTANTS
  Honest,       \* members that keep to the rules
  Byzantine,    \* members that do not; never more than a third in a good configuration
  Values,       \* blocks that may stand (ids; what is in them does not matter here)
  Quorum,       \* votes that decide: 2n/3 + 1, rounded down before the 1 is added
  MaxRound,     \* rounds of a height are 0 .. MaxRound
  MaxHeight,    \* heights are 1 .. MaxHeight
  Restarts      \* whether honest members crash and come back

(* Seeded bugs.  All are FALSE in the protocol; TLC must find each of them.  *)
CONSTANTS
  NoLock,         \* prevote for whatever is proposed, lock or no lock
  UnprovenPolka,  \* believe a proposal that says there was a polka
  NoCheck,        \* prevote for blocks that the ledger refuses
  ForgetLock,     \* a restarted member has its votes, but not its lock
  ForgetVotes     \* a restarted member knows nothing

Nil  == "nil"     \* the value of a vote for no block
None == "none"    \* no lock, no decision
Bad  == "bad"     \* a block that the ledger refuses; honest members can tell

Members == Honest \cup Byzantine
Faults  == (Cardinality(Members) - 1) \div 3
Heights == 1 .. MaxHeight
Rounds  == 0 .. MaxRound
Blocks  == Values \cup {Bad}
Passes(v) == v \in Values \/ NoCheck          \* the check of Application.check_block

VARIABLES
  leader,       \* leader[h][r]: who proposes; drawn once, at the start
  height,       \* height[p]: where p works; MaxHeight + 1 when it is done
  round,        \* round[p]
  step,         \* step[p]: "propose", "prevote" (has cast one) or "precommit" (has cast one)
  lockedValue,  \* lockedValue[p]: the block that p is bound to at its height, or None
  lockedRound,  \* lockedRound[p]: since which round, or -1
  proposals,    \* proposals[h][r]: set of <<block, valid round>> that an honest leader signed
  prevotes,     \* prevotes[h][p][r]: set of values for which p has signed a prevote
  precommits,   \* precommits[h][p][r]: the same for precommits
  decision      \* decision[h][p]: the block that p has stored with its certificate, or None

vars == <<leader, height, round, step, lockedValue, lockedRound,
          proposals, prevotes, precommits, decision>>

Init ==
  /\ leader \in [Heights -> [Rounds -> Members]]
  /\ height = [p \in Honest |-> 1]
  /\ round = [p \in Honest |-> 0]
  /\ step = [p \in Honest |-> "propose"]
  /\ lockedValue = [p \in Honest |-> None]
  /\ lockedRound = [p \in Honest |-> -1]
  /\ proposals = [h \in Heights |-> [r \in Rounds |-> {}]]
  /\ prevotes = [h \in Heights |-> [p \in Honest |-> [r \in Rounds |-> {}]]]
  /\ precommits = [h \in Heights |-> [p \in Honest |-> [r \in Rounds |-> {}]]]
  /\ decision = [h \in Heights |-> [p \in Honest |-> None]]

-----------------------------------------------------------------------------
(* Counting.  The Byzantine members have always voted, for everything.       *)

VotersFor(votes, h, r, v) == {p \in Honest : v \in votes[h][p][r]} \cup Byzantine
Voters(votes, h, r)       == {p \in Honest : votes[h][p][r] # {}} \cup Byzantine
IsQuorum(voters)          == Cardinality(voters) >= Quorum

Polka(h, r, v)  == IsQuorum(VotersFor(prevotes, h, r, v))
Commit(h, r, v) == IsQuorum(VotersFor(precommits, h, r, v))

(* Who has been heard of in round r or later (votes, _highest).              *)
ReachedRound(h, r) ==
  {p \in Honest : \E s \in Rounds : s >= r /\ (prevotes[h][p][s] # {} \/ precommits[h][p][s] # {})}
    \cup Byzantine

(* The proposals that somebody can have received for round r.                *)
ProposalsAt(h, r) ==
  IF leader[h][r] \in Byzantine THEN Blocks \X (-1 .. (r - 1)) ELSE proposals[h][r]

-----------------------------------------------------------------------------
(* The rules, each for an honest member p that works at height[p].           *)

SignPrevote(p, v) ==
  /\ prevotes' = [prevotes EXCEPT ![height[p]][p][round[p]] = @ \cup {v}]
  /\ step' = [step EXCEPT ![p] = "prevote"]

SignPrecommit(p, v) ==
  /\ precommits' = [precommits EXCEPT ![height[p]][p][round[p]] = @ \cup {v}]
  /\ step' = [step EXCEPT ![p] = "precommit"]

(* engine, _propose (lines 14 to 19 of Algorithm 1).  The leader signs its   *)
(* proposal and its own prevote for it in one step: one Persist covers both. *)
Propose(p) ==
  LET h == height[p]
      r == round[p] IN
  /\ step[p] = "propose" /\ leader[h][r] = p
  /\ \E v \in Values, x \in -1 .. (r - 1) :
       /\ IF x = -1 THEN lockedRound[p] = -1 ELSE x >= lockedRound[p] /\ Polka(h, x, v)
       /\ proposals' = [proposals EXCEPT ![h][r] = @ \cup {<<v, x>>}]
       /\ SignPrevote(p, v)
  /\ UNCHANGED <<leader, height, round, lockedValue, lockedRound, precommits, decision>>

(* ballot, acceptable: what the lock allows to prevote for.                  *)
Acceptable(p, v, x) ==
  \/ NoLock
  \/ lockedRound[p] = -1
  \/ lockedValue[p] = v
  \/ x >= 0 /\ lockedRound[p] <= x

(* engine, _prevote (lines 22 to 33).  A proposal that names an earlier      *)
(* polka counts only with that polka (ballot, _prove).  A bad block gets nil *)
(* (ballot, spoiled); that is PrevoteNil.                                    *)
Prevote(p) ==
  LET h == height[p]
      r == round[p] IN
  /\ step[p] = "propose"
  /\ \E proposal \in ProposalsAt(h, r) :
       LET v == proposal[1]
           x == proposal[2] IN
       /\ Passes(v)
       /\ IF x = -1 THEN TRUE ELSE Polka(h, x, v) \/ UnprovenPolka
       /\ SignPrevote(p, IF Acceptable(p, v, x) THEN v ELSE Nil)
  /\ UNCHANGED <<leader, height, round, lockedValue, lockedRound, proposals, precommits, decision>>

(* engine, _time_out("propose"), at any moment; also for a bad proposal.     *)
PrevoteNil(p) ==
  /\ step[p] = "propose"
  /\ SignPrevote(p, Nil)
  /\ UNCHANGED <<leader, height, round, lockedValue, lockedRound, proposals, precommits, decision>>

(* engine, _precommit (lines 36 to 43): a polka of one's own round locks.    *)
Precommit(p) ==
  LET h == height[p]
      r == round[p] IN
  /\ step[p] = "prevote"
  /\ \E v \in Blocks :
       /\ Passes(v) /\ Polka(h, r, v)
       /\ lockedValue' = [lockedValue EXCEPT ![p] = v]
       /\ lockedRound' = [lockedRound EXCEPT ![p] = r]
       /\ SignPrecommit(p, v)
  /\ UNCHANGED <<leader, height, round, proposals, prevotes, decision>>

(* A quorum of prevotes for nil, or a quorum for whatever and the timeout.   *)
PrecommitNil(p) ==
  /\ step[p] = "prevote"
  /\ IsQuorum(Voters(prevotes, height[p], round[p]))
  /\ SignPrecommit(p, Nil)
  /\ UNCHANGED <<leader, height, round, lockedValue, lockedRound, proposals, prevotes, decision>>

(* engine, _enter_round: the precommit timeout, or f + 1 members are ahead.  *)
EnterRound(p) ==
  LET h == height[p] IN
  /\ \E r \in Rounds :
       /\ r > round[p]
       /\ \/ r = round[p] + 1 /\ IsQuorum(Voters(precommits, h, round[p]))
          \/ Cardinality(ReachedRound(h, r)) > Faults
       /\ round' = [round EXCEPT ![p] = r]
  /\ step' = [step EXCEPT ![p] = "propose"]
  /\ UNCHANGED <<leader, height, lockedValue, lockedRound, proposals, prevotes, precommits, decision>>

(* ballot, decision (line 49), of whatever round; and catch-up, which is the *)
(* same thing with the precommits in a certificate.  Locks end with a height.*)
Decide(p) ==
  LET h == height[p] IN
  /\ \E r \in Rounds, v \in Blocks :
       /\ Passes(v) /\ Commit(h, r, v)
       /\ \E s \in 0 .. r : \E proposal \in ProposalsAt(h, s) : proposal[1] = v
       /\ decision' = [decision EXCEPT ![h][p] = v]
  /\ height' = [height EXCEPT ![p] = h + 1]
  /\ round' = [round EXCEPT ![p] = 0]
  /\ step' = [step EXCEPT ![p] = "propose"]
  /\ lockedValue' = [lockedValue EXCEPT ![p] = None]
  /\ lockedRound' = [lockedRound EXCEPT ![p] = -1]
  /\ UNCHANGED <<leader, proposals, prevotes, precommits>>

(* A crash and a restart (engine, _recall; ballot, restore).  The member is  *)
(* back where it last signed something: a round that it had entered and not  *)
(* yet voted in is forgotten, votes and lock are not.                        *)
Restart(p) ==
  LET h == height[p]
      signedIn == {r \in Rounds : prevotes[h][p][r] # {} \/ precommits[h][p][r] # {}}
      last == CHOOSE r \in signedIn : \A s \in signedIn : s <= r IN
  /\ Restarts
  /\ IF ForgetVotes \/ signedIn = {}
     THEN /\ round' = [round EXCEPT ![p] = 0]
          /\ step' = [step EXCEPT ![p] = "propose"]
     ELSE /\ round' = [round EXCEPT ![p] = last]
          /\ step' = [step EXCEPT ![p] = IF precommits[h][p][last] # {} THEN "precommit" ELSE "prevote"]
  /\ IF ForgetVotes \/ ForgetLock
     THEN /\ lockedValue' = [lockedValue EXCEPT ![p] = None]
          /\ lockedRound' = [lockedRound EXCEPT ![p] = -1]
     ELSE UNCHANGED <<lockedValue, lockedRound>>
  /\ UNCHANGED <<leader, height, proposals, prevotes, precommits, decision>>

Next ==
  \E p \in Honest :
    /\ height[p] \in Heights
    /\ \/ Propose(p) \/ Prevote(p) \/ PrevoteNil(p) \/ Precommit(p) \/ PrecommitNil(p)
       \/ EnterRound(p) \/ Decide(p) \/ Restart(p)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* What must hold in every state that can be reached.                        *)

(* No two honest members decide differently at one height.                   *)
Agreement ==
  \A h \in Heights : \A p, q \in Honest :
    decision[h][p] # None /\ decision[h][q] # None => decision[h][p] = decision[h][q]

(* What is decided may stand: no quorum makes an honest member take a block  *)
(* that the ledger refuses.                                                  *)
Validity == \A h \in Heights, p \in Honest : decision[h][p] \in Values \cup {None}

(* No honest member signs two values for one (kind, height, round), also not *)
(* after a restart: else it would be shut out as an equivocator.             *)
SignsOnce ==
  \A h \in Heights, r \in Rounds :
    /\ Cardinality(proposals[h][r]) <= 1
    /\ \A p \in Honest : Cardinality(prevotes[h][p][r]) <= 1 /\ Cardinality(precommits[h][p][r]) <= 1

(* The shape of the state; and that a lock never goes without the polka that *)
(* made it.                                                                  *)
WellFormed ==
  /\ \A p \in Honest :
       /\ height[p] \in 1 .. MaxHeight + 1 /\ round[p] \in Rounds
       /\ step[p] \in {"propose", "prevote", "precommit"}
       /\ lockedRound[p] \in -1 .. MaxRound
       /\ (lockedRound[p] = -1) = (lockedValue[p] = None)
       /\ lockedRound[p] >= 0 => Polka(height[p], lockedRound[p], lockedValue[p])

(* Honest members, and blocks, are as good as each other.                    *)
Symmetry == Permutations(Honest) \cup Permutations(Values)
=============================================================================
