; Theorem. The offset of a plan is exact and the only one, at full width: whatever the scaled host TSC
; and the guest's target, the difference modulo 2^64 added to the former gives the latter, and no
; other offset does.
;
; tsc/src/offset.rs, `offset_between` and `guest_at`; tsc/src/plan/mod.rs, `plan`.
(set-logic QF_BV)
(declare-const scaled (_ BitVec 64))
(declare-const target (_ BitVec 64))
(declare-const other (_ BitVec 64))
(define-fun offset () (_ BitVec 64) (bvsub target scaled))
(check-sat) ; expect sat
(assert (not (and
  (= (bvadd scaled offset) target)
  (=> (= (bvadd scaled other) target) (= other offset)))))
(check-sat) ; expect unsat
