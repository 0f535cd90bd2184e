; Theorem. The same bounds as in compose_error.smt2, which holds at every width, of the machine's
; multiplications and shifts instead of integers' divisions, at the reduced width of 5 bits with 2
; fraction bits: at 6 bits and more the solver needs over two minutes, by whatever tactic was tried.
; tsc/tests/exhaustive.rs tries every input at 8 bits.
;
; tsc/src/ratio.rs, `compose_floor` and `scale_floor`.
(set-logic QF_BV)
(declare-const h (_ BitVec 5))
(declare-const r1 (_ BitVec 5))
(declare-const r2 (_ BitVec 5))
; 15 bits hold every product here.
(define-fun wide ((x (_ BitVec 5))) (_ BitVec 15) ((_ zero_extend 10) x))
(define-fun scale ((x (_ BitVec 15)) (r (_ BitVec 15))) (_ BitVec 15)
  (bvlshr (bvmul x r) (_ bv2 15)))
(define-fun two_steps () (_ BitVec 15) (scale (scale (wide h) (wide r1)) (wide r2)))
(define-fun one_step () (_ BitVec 15) (scale (wide h) (scale (wide r1) (wide r2))))
(check-sat) ; expect sat
(assert (not (and
  (bvule two_steps (bvadd one_step (bvlshr (wide h) (_ bv2 15)) (_ bv1 15)))
  (bvule one_step (bvadd two_steps (bvlshr (wide r2) (_ bv2 15)) (_ bv1 15))))))
(check-sat) ; expect unsat
