; Theorem. However a stretch of time is cut into looks, a slew that gives up to floor(ticks x ppm / 10^6)
; at each gives in all at most the bound's share of all ticks: the clock never runs faster than that.
; Induction over looks: what was given times 10^6 is at most ticks x ppm, and stays so. At any width.
;
; tsc/src/policy/catch_up.rs, `Slew::share_floor`.
(set-logic QF_NIA)
(declare-const ppm Int)
(declare-const ticks Int)     ; so far
(declare-const given Int)     ; so far
(declare-const more Int)      ; ticks until the next look
(declare-const share Int)     ; what it gives at most
(declare-const rest Int)
(declare-const gives Int)     ; what it gives
(assert (and (<= 1 ppm) (<= ppm 500000) (<= 0 ticks) (<= 0 given) (<= 0 more)))
(assert (<= (* given 1000000) (* ticks ppm)))
(assert (= (* more ppm) (+ (* share 1000000) rest)))
(assert (and (<= 0 rest) (< rest 1000000) (<= 0 gives) (<= gives share)))
(check-sat) ; expect sat
(assert (not (<= (* (+ given gives) 1000000) (* (+ ticks more) ppm))))
(check-sat) ; expect unsat
