/** How the loopback HTTP server is used: requests by front-end and class of their answer, and how long they take. */
import type { FastifyInstance } from 'fastify'
import { Counts } from './counts.ts'
import type { Sample } from './table.ts'

/** From a narinfo that is known here to a NAR of a gigabyte. */
const BUCKETS_SECONDS = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60]
/** Which front-end answers what begins so; the rest is `other`. */
const FRONTS: readonly (readonly [prefix: string, front: string])[] = [
  ['/nix', 'nix'],
  ['/v2', 'oci'],
  ['/v3/discovery', 'discovery'],
  ['/v1', 'discovery'],
  ['/metrics', 'metrics'],
]
const DURATION = 'undernet_http_request_duration_seconds'

type Times = { counts: number[]; sum: number; count: number }

export class HttpTimes {
  readonly #requests = new Counts('undernet_http_requests_total', ['front', 'code'])
  readonly #times = new Map<string, Times>()

  /** Counts all that the server answers from now on. */
  watch(app: FastifyInstance): void {
    app.addHook('onResponse', async ({ url }, reply) => {
      this.add(url, reply.statusCode, reply.elapsedTime / 1_000)
    })
  }

  add(url: string, status: number, seconds: number): void {
    const front = frontOf(url)
    this.#requests.add([front, `${Math.floor(status / 100)}xx`])
    const times = this.#times.get(front) ?? { counts: BUCKETS_SECONDS.map(() => 0), sum: 0, count: 0 }
    this.#times.set(front, times)
    times.sum += seconds
    times.count++
    const at = BUCKETS_SECONDS.findIndex((most) => seconds <= most)
    if (at >= 0) times.counts[at] = (times.counts[at] ?? 0) + 1
  }

  samples(): Sample[] {
    return [...this.#requests.samples(), ...[...this.#times].flatMap(([front, times]) => histogram(front, times))]
  }
}

/** Each bucket has what is in those below it, too. */
function histogram(front: string, { counts, sum, count }: Times): Sample[] {
  let below = 0
  const buckets = BUCKETS_SECONDS.map((most, at): Sample => {
    below += counts[at] ?? 0
    return { name: DURATION, part: '_bucket', labels: { front, le: String(most) }, value: below }
  })
  return [
    ...buckets,
    { name: DURATION, part: '_bucket', labels: { front, le: '+Inf' }, value: count },
    { name: DURATION, part: '_sum', labels: { front }, value: sum },
    { name: DURATION, part: '_count', labels: { front }, value: count },
  ]
}

function frontOf(url: string): string {
  const path = url.split('?', 1)[0] ?? ''
  const isUnder = (prefix: string) => path === prefix || path.startsWith(`${prefix}/`) || path.startsWith(`${prefix}:`)
  return FRONTS.find(([prefix]) => isUnder(prefix))?.[1] ?? 'other'
}
