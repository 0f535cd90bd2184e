; Theorem. Scaling loses less than one tick and never gains, at full width: with the exact product p
; = host x ratio, the result q = floor(p / 2^N) satisfies q x 2^N <= p < (q + 1) x 2^N. And so the
; right shift of the 128-bit product by N is that floor.
;
; tsc/src/ratio.rs, `scale_floor`.
(set-logic QF_BV)
(declare-const host (_ BitVec 64))
(declare-const ratio (_ BitVec 64))
(declare-const product (_ BitVec 128))   ; any product, so that the multiplication does not matter
(define-fun unit48 () (_ BitVec 128) (bvshl (_ bv1 128) (_ bv48 128)))
(define-fun unit32 () (_ BitVec 128) (bvshl (_ bv1 128) (_ bv32 128)))
(define-fun q48 () (_ BitVec 128) (bvlshr product (_ bv48 128)))
(define-fun q32 () (_ BitVec 128) (bvlshr product (_ bv32 128)))
(check-sat) ; expect sat
(assert (not (and
  ; below: q x 2^N <= p
  (bvule (bvshl q48 (_ bv48 128)) product)
  (bvule (bvshl q32 (_ bv32 128)) product)
  ; above: p - q x 2^N < 2^N
  (bvult (bvsub product (bvshl q48 (_ bv48 128))) unit48)
  (bvult (bvsub product (bvshl q32 (_ bv32 128))) unit32))))
(check-sat) ; expect unsat
