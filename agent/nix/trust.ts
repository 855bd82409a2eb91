/**
 * The keys whose signatures this agent believes, and what they make of a store path. Keys come from the configuration, from
 * `agent trust add` (kept in the state database), and from members of closed networks to whom the policy gives `content:sign`.
 *
 * A path is believed when as many different keys as are required have signed it, or the agent's own: that signs nothing but what was built
 * here, or was believed already.
 */
import { AgentError } from '../error.ts'
import { type Database, migrate } from '../state/database.ts'
import { contentAddressFits } from './content-address.ts'
import { isSignedBy, type PublicKey, parsePublicKey, type SignedFacts, signerOf } from './signing.ts'

/** Each is tried for a signature that bears its name; a list longer than this is a mistake. */
const KEYS_MAX = 1_000
/** Named in a refusal. */
const NAMED_MAX = 5

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
  /** `forged`: a trusted key is named, but did not sign this. `untrusted`: too few trusted keys have signed it. */
  | { ok: false; fault: 'forged' | 'untrusted'; reason: string }

export class TrustedKeys {
  readonly #db: Database
  readonly #own: PublicKey
  #config: PublicKey[]
  #required: number
  #added: PublicKey[]

  /**
   * `required`: so many different keys must have signed a path.
   *
   * @throws {AgentError} `usage` for a key of the configuration that is none.
   */
  constructor(db: Database, own: PublicKey, config: readonly string[], required = 1) {
    migrate(db, 'trust', SCHEMA)
    this.#db = db
    this.#own = own
    this.#config = config.map(parsePublicKey)
    this.#required = required
    const rows = db.prepare('SELECT key FROM trusted_keys ORDER BY added, key').all() as { key: string }[]
    this.#added = rows.map(({ key }) => parsePublicKey(key))
  }

  /** Takes what a configuration that was read again says. @throws {AgentError} `usage`, and nothing has changed */
  configure(config: readonly string[], required = this.#required): void {
    this.#config = config.map(parsePublicKey)
    this.#required = required
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

  /**
   * Judges a path by the signatures that came with it, and by its content address where it has one. `members` are keys of members whom the
   * policy of the network that it comes from lets sign.
   */
  judge(
    facts: SignedFacts & { ca?: string | undefined },
    signatures: readonly string[],
    members: readonly PublicKey[] = [],
  ): Verdict {
    const ca = facts.ca !== undefined && contentAddressFits(facts, facts.ca) ? facts.ca : undefined
    const keys = [...this.#keys(), ...members]
    const signers = new Map<string, PublicKey>()
    for (const signature of signatures) {
      const signer = keys.find((key) => !signers.has(key.text) && isSignedBy(key, facts, signature))
      if (signer) signers.set(signer.text, signer)
      if (signer && (signer.text === this.#own.text || signers.size >= this.#required))
        return { ok: true, by: 'signature', keyName: signer.name, ca }
    }
    if (ca !== undefined) return { ok: true, by: 'content', ca }
    if (facts.ca !== undefined) {
      return { ok: false, fault: 'forged', reason: `the content address ${facts.ca} is not that of ${facts.path}` }
    }
    const good = [...signers.values()].map(({ name }) => name)
    const others = [...new Set(signatures.map(signerOf))].filter((name) => !good.includes(name))
    const forged = others.find((name) => keys.some((key) => key.name === name))
    if (forged !== undefined) {
      return { ok: false, fault: 'forged', reason: `its signature by ${forged} is not one over what the peer says` }
    }
    return { ok: false, fault: 'untrusted', reason: `it is ${this.#lack(good, others, keys)}` }
  }

  /** Which keys signed, how many have to, and which they may be. */
  #lack(good: readonly string[], others: readonly string[], keys: readonly PublicKey[]): string {
    const signed = [
      ...(good.length > 0 ? [`signed by ${named(good)}, which this agent trusts`] : []),
      ...(others.length > 0 ? [`signed by ${named(others)}, which this agent does not trust`] : []),
    ]
    const count = this.#required === 1 ? 'a signature' : `signatures of ${this.#required} different keys`
    const names = keys.map(({ name }) => name).filter((name) => name !== this.#own.name)
    const of = names.length > 0 ? `: ${named([...new Set(names)])}` : ', and none is'
    return `${signed.join(' and ') || 'not signed'}; it needs ${count} that this agent trusts${of}`
  }

  #keys(): PublicKey[] {
    return [this.#own, ...this.#config, ...this.#added]
  }
}

function named(names: readonly string[]): string {
  const more = names.length > NAMED_MAX ? `, and ${names.length - NAMED_MAX} more` : ''
  return `${names.slice(0, NAMED_MAX).join(', ')}${more}`
}
