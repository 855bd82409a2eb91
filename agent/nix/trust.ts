/**
 * The keys whose signatures this agent believes, and what they make of a store path. Keys come from the configuration, from
 * `agent trust add` (kept in the state database), and the agent's own cache key is always one.
 */
import { AgentError } from '../error.ts'
import { type Database, migrate } from '../state/database.ts'
import { contentAddressFits } from './content-address.ts'
import { isSignedBy, type PublicKey, parsePublicKey, type SignedFacts, signerOf } from './signing.ts'

/** Each is tried for a signature that bears its name; a list longer than this is a mistake. */
const KEYS_MAX = 1_000

const SCHEMA = [`CREATE TABLE trusted_keys (key TEXT PRIMARY KEY, added INTEGER NOT NULL) STRICT`]

export type TrustedKey = { name: string; key: string; origin: 'own' | 'config' | 'added' }

/** Why a path may be handed to the local Nix, or may not. */
export type Verdict =
  /**
   * By a signature of this trusted key, so the agent may sign it for its own machine; or because its name follows from its contents,
   * which Nix checks itself. `ca` is the content address, if it has the right one: a signature does not cover it.
   */
  | { ok: true; by: 'signature'; keyName: string; ca: string | undefined }
  | { ok: true; by: 'content'; ca: string }
  /** `forged`: a trusted key is named, but did not sign this. `untrusted`: no trusted key is named. */
  | { ok: false; fault: 'forged' | 'untrusted'; reason: string }

export class TrustedKeys {
  readonly #db: Database
  readonly #own: PublicKey
  #config: PublicKey[]
  #added: PublicKey[]

  /** @throws {AgentError} `usage` for a key of the configuration that is none. */
  constructor(db: Database, own: PublicKey, config: readonly string[]) {
    migrate(db, 'trust', SCHEMA)
    this.#db = db
    this.#own = own
    this.#config = config.map(parsePublicKey)
    const rows = db.prepare('SELECT key FROM trusted_keys ORDER BY added, key').all() as { key: string }[]
    this.#added = rows.map(({ key }) => parsePublicKey(key))
  }

  /** Takes the keys of a configuration that was read again. @throws {AgentError} `usage`, and nothing has changed */
  configure(config: readonly string[]): void {
    this.#config = config.map(parsePublicKey)
  }

  list(): TrustedKey[] {
    const view = (origin: TrustedKey['origin']) => (key: PublicKey) => ({ name: key.name, key: key.text, origin })
    return [view('own')(this.#own), ...this.#config.map(view('config')), ...this.#added.map(view('added'))]
  }

  /** Whether this very key, `name:base64`, is one. */
  has(text: string): boolean {
    return this.#keys().some((key) => key.text === text)
  }

  /** Believes a key from now on; once more is no fault. @throws {AgentError} `usage`, `limit` */
  add(text: string): TrustedKey {
    const key = parsePublicKey(text)
    const known = this.list().find((each) => each.key === key.text)
    if (known) return known
    if (this.#keys().length >= KEYS_MAX) throw new AgentError('limit', `there are ${KEYS_MAX} trusted keys already`)
    this.#db.prepare('INSERT INTO trusted_keys (key, added) VALUES (?, ?)').run(key.text, Date.now())
    this.#added.push(key)
    return { name: key.name, key: key.text, origin: 'added' }
  }

  /**
   * Stops believing a key, given in full or by its name.
   *
   * @throws {AgentError} `not-found`; `usage` when several have that name, or it was not added by command.
   */
  remove(keyOrName: string): TrustedKey {
    const wanted = keyOrName.trim()
    const found = this.list().filter(({ name, key }) => key === wanted || name === wanted)
    const [one] = found
    if (!one) {
      throw new AgentError('not-found', `${JSON.stringify(wanted)} is not a trusted key`, {
        next: 'See `agent trust list`.',
      })
    }
    if (found.length > 1) {
      throw new AgentError('usage', `${found.length} trusted keys are named ${wanted}`, {
        next: `Give one in full: ${found.map(({ key }) => key).join(' or ')}`,
      })
    }
    if (one.origin !== 'added') {
      const where = one.origin === 'own' ? "is this agent's own key" : 'comes from the configuration'
      throw new AgentError('usage', `${one.name} ${where}, and cannot be removed by command`, {
        ...(one.origin === 'config' && { next: 'Take it out of `trusted_keys` there, and reload the agent.' }),
      })
    }
    this.#db.prepare('DELETE FROM trusted_keys WHERE key = ?').run(one.key)
    this.#added = this.#added.filter(({ text }) => text !== one.key)
    return one
  }

  /** Judges a path by the signatures that came with it, and by its content address where it has one. */
  judge(facts: SignedFacts & { ca?: string | undefined }, signatures: readonly string[]): Verdict {
    const keys = this.#keys()
    const ca = facts.ca !== undefined && contentAddressFits(facts, facts.ca) ? facts.ca : undefined
    for (const signature of signatures) {
      const signer = keys.find((key) => isSignedBy(key, facts, signature))
      if (signer) return { ok: true, by: 'signature', keyName: signer.name, ca }
    }
    if (ca !== undefined) return { ok: true, by: 'content', ca }
    if (facts.ca !== undefined) {
      return { ok: false, fault: 'forged', reason: `the content address ${facts.ca} is not that of ${facts.path}` }
    }
    const names = [...new Set(signatures.map(signerOf))]
    const forged = names.find((name) => keys.some((key) => key.name === name))
    if (forged !== undefined) {
      return { ok: false, fault: 'forged', reason: `its signature by ${forged} is not one over what the peer says` }
    }
    const by = names.length > 0 ? `signed by ${names.join(', ')}, which this agent does not trust` : 'not signed'
    return { ok: false, fault: 'untrusted', reason: `it is ${by}` }
  }

  #keys(): PublicKey[] {
    return [this.#own, ...this.#config, ...this.#added]
  }
}
