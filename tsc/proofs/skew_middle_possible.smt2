; Theorem. Let u(x, y) be proven upper bounds of TSC(y) - TSC(x) among a root r and CPUs a and b that
; shortest paths have sharpened (every bound is at most the sum of two through a third CPU). Give each
; CPU x the position floor((u(r, x) - u(x, r)) / 2). Then the difference of two positions lies within
; the pair's own bounds, to within the one tick that rounding costs: the estimate that a policy goes by
; is never one that the timestamps exclude.
;
; tsc/src/skew/matrix.rs, `estimate`.
(set-logic QF_LIA)
(declare-const ura Int) (declare-const uar Int)
(declare-const urb Int) (declare-const ubr Int)
(declare-const uab Int) (declare-const uba Int)
(declare-const pa Int) (declare-const pb Int)
(assert (and (<= ura (+ urb uba)) (<= urb (+ ura uab))
             (<= uar (+ uab ubr)) (<= ubr (+ uba uar))
             (<= uab (+ uar urb)) (<= uba (+ ubr ura))))
(assert (and (<= 0 (+ ura uar)) (<= 0 (+ urb ubr)) (<= 0 (+ uab uba))))
; The floors of halves.
(assert (and (<= (* 2 pa) (- ura uar)) (< (- ura uar) (+ (* 2 pa) 2))))
(assert (and (<= (* 2 pb) (- urb ubr)) (< (- urb ubr) (+ (* 2 pb) 2))))
(check-sat) ; expect sat
(assert (not (and (<= (- pb pa) (+ uab 1)) (>= (- pb pa) (- (- uba) 1)))))
(check-sat) ; expect unsat
