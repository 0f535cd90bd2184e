; Theorem. Catch-up moves a guest forward, never back and never past its line, at full width and
; across the counter's wrap: for every reading that is before the target (by the shorter way around)
; and every share of a slew, the correction is not negative, the new reading is not before the old
; one, the target is not before the new reading, and a step lands on it.
;
; tsc/src/policy/catch_up.rs, `CatchUp::forward`; `is_before` of tsc/src/units.rs.
(set-logic QF_BV)
(declare-const reading (_ BitVec 64))
(declare-const target (_ BitVec 64))
(declare-const share (_ BitVec 64))
(define-fun before ((a (_ BitVec 64)) (b (_ BitVec 64))) Bool (bvslt (bvsub a b) (_ bv0 64)))
(define-fun behind () (_ BitVec 64) (bvsub target reading))
(define-fun slewed () (_ BitVec 64) (ite (bvult share behind) share behind))
(assert (before reading target))
; `as_delta`: exactly half the circle has no positive delta, and no correction is made.
(assert (bvsge behind (_ bv0 64)))
(check-sat) ; expect sat
(assert (not (and
  (bvsge slewed (_ bv0 64))
  (bvule slewed share)
  (not (before (bvadd reading slewed) reading))
  (not (before target (bvadd reading slewed)))
  (= (bvadd reading behind) target))))
(check-sat) ; expect unsat
