; Theorem. Scaling is monotonic, at full width and for both formats: a later host reading never scales
; to an earlier one, as long as neither result wraps. Proven for any positive ratio and both fraction
; widths.
;
; tsc/src/ratio.rs, `scale_floor`: floor(host x ratio / 2^N).
(set-logic QF_NIA)
(declare-const early Int)
(declare-const later Int)
(declare-const ratio Int)
(declare-const unit Int)            ; 2^N
(declare-const early_scaled Int)
(declare-const later_scaled Int)
(declare-const early_rest Int)
(declare-const later_rest Int)
(define-fun two64 () Int 18446744073709551616)
(assert (and (<= 0 early) (<= early later) (< later two64)))
(assert (and (< 0 ratio) (< ratio two64)))
(assert (or (= unit 281474976710656) (= unit 4294967296)))
; The floors, by division with remainder.
(assert (= (* early ratio) (+ (* early_scaled unit) early_rest)))
(assert (= (* later ratio) (+ (* later_scaled unit) later_rest)))
(assert (and (<= 0 early_rest) (< early_rest unit) (<= 0 later_rest) (< later_rest unit)))
; A fact of multiplication that the solver is spared: later x ratio = early x ratio + the rest.
(assert (>= (* (- later early) ratio) 0))
(check-sat) ; expect sat
(assert (not (<= early_scaled later_scaled)))
(check-sat) ; expect unsat
