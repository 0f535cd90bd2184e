; Theorem. Let M = 2^N, and
;   two steps: t = floor(floor(h r1 / M) r2 / M)      one step: o = floor(h floor(r1 r2 / M) / M).
; Then t - o < h / M + 1 and o - t < r2 / M + 1: what `compose_floor` documents. Proven at full width
; and without any bound on the widths, for every M >= 1, of the operations themselves: `shr` by N is
; the division by M with a remainder from 0 to M - 1, and no product is cut off
; (scale_no_overflow.smt2), as long as the first step's result fits the counter. With
;   a = floor(h r1 / M), r = floor(r1 r2 / M)  and the remainders  e1, e2, e3, e4
; of the four divisions, the proof has two steps, as the solver does not find it in one:
;   Lemma: whatever the quotients, (h r1) r2 = h (r1 r2) multiplied out is
;     M (t M + e2) + e1 r2 = M (o M + e4) + h e3.
;   From the lemma's equation and the remainders' bounds alone follow the two inequalities.
; compose_error_reduced.smt2 and tsc/tests/exhaustive.rs try the operations of the machine.
;
; tsc/src/ratio.rs, `compose_floor`.
(set-logic QF_NIA)
(declare-const M Int)
(declare-const h Int)
(declare-const r2 Int)
(declare-const t Int)
(declare-const o Int)
; The lemma: remainders are what the quotients leave.
(push)
(declare-const r1 Int)
(declare-const a Int)
(declare-const r Int)
(define-fun d1 () Int (- (* h r1) (* a M)))
(define-fun d2 () Int (- (* a r2) (* t M)))
(define-fun d3 () Int (- (* r1 r2) (* r M)))
(define-fun d4 () Int (- (* h r) (* o M)))
(push)
(assert (and (= M 4) (= h 7) (= r1 6) (= r2 5) (= a 10) (= t 12) (= r 7) (= o 12)))
(assert (and (= d1 2) (= d2 2) (= d3 2) (= d4 1)))
(check-sat) ; expect sat
(pop)
(assert (not (= (+ (* M (+ (* t M) d2)) (* d1 r2)) (+ (* M (+ (* o M) d4)) (* h d3)))))
(check-sat) ; expect unsat
(pop)
; The theorem, from the lemma's equation.
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
