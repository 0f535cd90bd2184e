; Theorem. The product of a 64-bit counter and a 64-bit ratio fits 128 bits, at full width: computed
; in 192 bits it has nothing above bit 127, and its low 128 bits are what 128-bit multiplication gives.
;
; tsc/src/wide.rs, `mul`.
(set-logic QF_NIA)
(declare-const host Int)
(declare-const ratio Int)
(define-fun two64 () Int 18446744073709551616)
(assert (and (<= 0 host) (< host two64) (<= 0 ratio) (< ratio two64)))
(check-sat) ; expect sat: the premises have a model
(assert (not (and (<= 0 (* host ratio)) (< (* host ratio) (* two64 two64)))))
(check-sat) ; expect unsat
