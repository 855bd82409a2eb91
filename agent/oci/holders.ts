/** Who has a blob, asked of the peers that this node is connected to: for people who want to know how many would be left when one goes. */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { type OpenStreams, PieceSessions } from '../content/piece-sessions.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'

/** A person waits for the answer. */
const ASK_MS_MAX = 1_500
/** As many as a node is usually connected to. */
const PEERS_MAX = 24
/** In one question. */
const BLOBS_MAX = 64

export class Holders implements AsyncDisposable {
  readonly #sessions: PieceSessions
  readonly #log: Log

  constructor(streams: OpenStreams, log: Log) {
    this.#sessions = new PieceSessions(streams)
    this.#log = log
  }

  /** Peers that have all of a blob, by blob. Who does not answer in time is not named. */
  async of(
    blobs: readonly Digest[],
    { network, peers }: { network: string; peers: readonly string[] },
    signal: AbortSignal,
  ): Promise<Map<Digest, string[]>> {
    const held = new Map<Digest, string[]>()
    const asked = blobs.slice(0, BLOBS_MAX)
    if (asked.length === 0) return held
    const limited = AbortSignal.any([signal, AbortSignal.timeout(ASK_MS_MAX)])
    const digests = asked.map((digest) => Uint8Array.from(Buffer.from(digest, 'hex')))
    const ask = (peerId: string) =>
      this.#sessions.use({ peerId, network }, { openMs: ASK_MS_MAX, signal: limited }, async ({ asker }) => {
        const answers = await asker.have(digests, limited)
        for (const [nth, answer] of answers.entries()) {
          const digest = asked[nth]
          if (digest !== undefined && answer?.pieces === 'all') held.set(digest, [...(held.get(digest) ?? []), peerId])
        }
        return { isOrderly: true }
      })
    await Promise.all(
      peers
        .slice(0, PEERS_MAX)
        .map((peerId) =>
          ask(peerId).catch((error: unknown) =>
            this.#log.debug({ peerId, reason: reasonOf(error) }, 'holders.unanswered'),
          ),
        ),
    )
    signal.throwIfAborted()
    return held
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#sessions[Symbol.asyncDispose]()
  }
}
