; Theorem. Let M = 2^N, and
;   two steps: t = floor(floor(h r1 / M) r2 / M)      one step: o = floor(h floor(r1 r2 / M) / M).
; Then t - o < h / M + 1 and o - t < r2 / M + 1: what `compose_floor` documents. Proven without any
; bound on the widths, for every M >= 1, from the four divisions with remainder
;   h r1 = a M + e1    a r2 = t M + e2    r1 r2 = r M + e3    h r = o M + e4
; and the identity (h r1) r2 = h (r1 r2), which multiplied out is the one equation asserted below:
;   M (t M + e2) + e1 r2 = M (o M + e4) + h e3.
;
; tsc/src/ratio.rs, `compose_floor`.
(set-logic QF_NIA)
(declare-const M Int)
(declare-const h Int)
(declare-const r2 Int)
(declare-const t Int)
(declare-const o Int)
(declare-const e1 Int)
(declare-const e2 Int)
(declare-const e3 Int)
(declare-const e4 Int)
(assert (and (>= M 1) (>= h 0) (>= r2 0) (>= t 0) (>= o 0)))
(assert (and (<= 0 e1) (< e1 M) (<= 0 e2) (< e2 M) (<= 0 e3) (< e3 M) (<= 0 e4) (< e4 M)))
(assert (= (+ (* M (+ (* t M) e2)) (* e1 r2)) (+ (* M (+ (* o M) e4)) (* h e3))))
(push)
(assert (and (= M 4) (= h 7) (= r2 5) (= e1 0)))
(check-sat) ; expect sat
(pop)
; t - o >= h / M + 1, times M: impossible.
(push)
(assert (>= (* M (- t o)) (+ h M)))
(check-sat) ; expect unsat
(pop)
; o - t >= r2 / M + 1, times M: impossible.
(push)
(assert (>= (* M (- o t)) (+ r2 M)))
(check-sat) ; expect unsat
(pop)
