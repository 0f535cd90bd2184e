; Theorem. At the ratio 1, composing offsets is adding them, at full width and for both formats; so
; the seed's code, which added one delta to the active and to the saved offset, was right as long as
; there was no scaling.
;
; tsc/src/nested.rs, `compose_offset_toward_zero`: sign and magnitude, magnitude x ratio >> N.
(set-logic QF_BV)
(declare-const o1 (_ BitVec 64))
(declare-const o2 (_ BitVec 64))
(declare-const delta (_ BitVec 64))
(define-fun negative ((x (_ BitVec 64))) Bool (bvslt x (_ bv0 64)))
(define-fun magnitude ((x (_ BitVec 64))) (_ BitVec 128)
  ((_ zero_extend 64) (ite (negative x) (bvneg x) x)))
(define-fun scaled ((x (_ BitVec 64)) (n (_ BitVec 128))) (_ BitVec 64)
  (let ((m ((_ extract 63 0) (bvlshr (bvmul (magnitude x) (bvshl (_ bv1 128) n)) n))))
    (ite (negative x) (bvneg m) m)))
(define-fun composed ((x (_ BitVec 64)) (n (_ BitVec 128))) (_ BitVec 64) (bvadd (scaled x n) o2))
(check-sat) ; expect sat
(assert (not (and
  (= (composed o1 (_ bv48 128)) (bvadd o1 o2))
  (= (composed o1 (_ bv32 128)) (bvadd o1 o2))
  ; Moving L1 by delta moves L2 by delta.
  (= (composed (bvadd o1 delta) (_ bv48 128)) (bvadd (composed o1 (_ bv48 128)) delta))
  (= (composed (bvadd o1 delta) (_ bv32 128)) (bvadd (composed o1 (_ bv32 128)) delta)))))
(check-sat) ; expect unsat
