/**
 * The closed networks that this node is in: made, joined, left, and kept across restarts. What is told as done is on the disk.
 *
 * The open network is none of these: it has no members, no secret and no policy.
 */
import { randomBytes } from 'node:crypto'
import { inspect } from 'node:util'
import { WireError } from '../../protocols/error.ts'
import type { Joined, Party } from '../../protocols/hello/hello.ts'
import { NETWORKS_MAX } from '../../protocols/hello/messages.ts'
import { type Chain, decodeChain, issueCertificate, judgeChain } from '../../protocols/membership/certificate.ts'
import { SECRET_BYTES } from '../../protocols/membership/network.ts'
import { DEFAULT_GRANTS, issuePolicy } from '../../protocols/membership/policy.ts'
import { Revocations } from '../../protocols/membership/revocation.ts'
import { hexOf, type StatementSigner, sameBytes } from '../../protocols/membership/statement.ts'
import { NAME_PATTERN } from '../../protocols/membership/words.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import type { Database } from '../state/database.ts'
import { LIFETIME_MS } from './issuing.ts'
import { signerOf } from './key-file.ts'
import { checkLabels, nameOf } from './member-names.ts'
import { Membership, type MembershipChange } from './membership.ts'
import { type NetworkRow, NetworkRows } from './network-rows.ts'
import { type ExportedRoot, openRoot, sealRoot } from './root-export.ts'
import { RootKeys } from './root-keys.ts'

/** What the open network is called for people; no other may be. */
const OPEN_NAME = 'open'
/** The beginning of an id that people type. Shorter ones are taken for names. */
const PREFIX_LENGTH_MIN = 4

export type NetworkChange = {
  /** The network's. */
  readonly id: string
  readonly what: 'joined' | 'left' | MembershipChange
}

export type NetworksOptions = {
  readonly db: Database
  /** Where root keys are kept. */
  readonly directory: string
  /** This node's. */
  readonly key: StatementSigner
  readonly now?: () => number
  readonly log: Log
}

type Kept = Omit<NetworkRow, 'chain'> & { readonly chain: Chain }
/** What this node is called in the network. */
type Own = { memberName: string; labels?: Record<string, string> }

export class Networks {
  readonly key: StatementSigner
  readonly now: () => number
  /** Networks whose root key is here, and nothing else: the database was lost. */
  readonly orphans: readonly string[]
  readonly #log: Log
  readonly #rows: NetworkRows
  readonly #roots: RootKeys
  readonly #all = new Map<string, Membership>()
  /** Networks whose root key is here and elsewhere. */
  readonly #exported = new Set<string>()
  readonly #listeners = new Set<(change: NetworkChange) => void>()

  constructor({ db, directory, key, now = Date.now, log }: NetworksOptions) {
    this.key = { publicKey: key.publicKey, sign: (bytes) => key.sign(bytes) }
    this.now = now
    this.#log = log
    this.#rows = new NetworkRows(db)
    this.#roots = new RootKeys(directory, log)
    this.orphans = this.#roots.recover((id) => this.#rows.has(id))
    for (const row of this.#rows.all()) {
      try {
        const chain = decodeChain(row.chain)
        if (!sameBytes(chain.statement.subject, key.publicKey))
          throw new WireError('refused', 'the certificate is of another key than this node has now')
        this.#keep({ ...row, chain })
      } catch (error) {
        if (!(error instanceof WireError)) throw error
        log.error({ network: row.id, name: row.name, reason: reasonOf(error) }, 'network.unreadable')
      }
    }
  }

  /** By name. */
  list(): Membership[] {
    return [...this.#all.values()].sort((a, b) => (a.name < b.name ? -1 : 1))
  }

  get(id: string): Membership | undefined {
    return this.#all.get(id)
  }

  /**
   * The network that somebody calls by its name, or by the beginning of its id.
   *
   * @throws {AgentError} `not-found`; `usage` when several ids begin so
   */
  find(reference: string): Membership {
    const all = this.list()
    const named = all.find(({ name }) => name === reference)
    if (named !== undefined) return named
    const isPrefix = reference.length >= PREFIX_LENGTH_MIN
    const [found, ...others] = isPrefix ? all.filter(({ id }) => id.startsWith(reference.toLowerCase())) : []
    if (others.length > 0) throw new AgentError('usage', `several networks have an id that begins with ${reference}`)
    if (found !== undefined) return found
    const names = all.map(({ name }) => name).join(', ')
    throw new AgentError('not-found', `this node is in no closed network "${reference.slice(0, 80)}"`, {
      next:
        names === '' ? 'Make one with `agent network create`, or join one with `agent join`.' : `It is in: ${names}.`,
    })
  }

  /**
   * Makes a network, with this node as its first member and its root key here.
   *
   * @throws {AgentError} `usage`, `taken`, `limit`
   */
  create(name: string, own: Own): Membership {
    if (!NAME_PATTERN.test(name) || name === OPEN_NAME)
      throw new AgentError('usage', `"${name.slice(0, 80)}" cannot be the name of a network`, {
        next: `Take lower-case letters, digits and hyphens, at most 63, and not "${OPEN_NAME}".`,
      })
    if (this.#rows.isTaken(name)) throw new AgentError('taken', `there is a network "${name}" here already`)
    this.#checkRoom()
    checkLabels(own.labels ?? {})
    const { id, network, signer } = this.#roots.make()
    try {
      const secret = Uint8Array.from(randomBytes(SECRET_BYTES))
      const chain = this.#certify(network, own, signer)
      const policy = issuePolicy({ network, version: 1, grants: [...DEFAULT_GRANTS], issued: this.now() }, signer)
      const row = { kind: 'policy', key: hexOf(signer.publicKey), bytes: policy.bytes } as const
      this.#rows.add({ id, name, secret, chain: chain.bytes }, row)
      this.#roots.settle(id)
      return this.#enter({ id, name, secret, chain, rootExportedMs: undefined })
    } catch (error) {
      if (!this.#rows.has(id)) this.#roots.remove(id)
      throw error
    }
  }

  /**
   * Takes in what a token brought. Coming again to a network renews the certificate there, and nothing else.
   *
   * @throws {AgentError} `not-allowed` when what was brought is not good; `limit`
   */
  join({ network, name, secret, chain }: Joined): Membership {
    const id = hexOf(network)
    const present = this.#all.get(id)
    if (present !== undefined) return this.#rejoin(present, { secret, chain })
    const by = { network, subject: this.key.publicKey, now: this.now(), revocations: new Revocations(network) }
    const verdict = judgeChain(chain, by)
    if ('fault' in verdict) throw new AgentError('not-allowed', `the network cannot be joined: ${verdict.why}`)
    this.#checkRoom()
    const local = this.#freeName(name, id)
    const bytes = Uint8Array.from(secret)
    this.#rows.add({ id, name: local, secret: bytes, chain: chain.bytes })
    return this.#enter({ id, name: local, secret: bytes, chain, rootExportedMs: undefined })
  }

  /**
   * Leaves a network: all that is kept of it goes, the root key too.
   *
   * @throws {AgentError} `usage` while the only copy of the root key is here, unless forced
   */
  leave(id: string, { force = false } = {}): void {
    const membership = this.find(id)
    if (membership.rootKey === 'here' && !force)
      throw new AgentError(
        'usage',
        `the only copy of the root key of "${membership.name}" is here, and would be gone`,
        {
          next: `Export it first: agent network export-root ${membership.name} --to FILE. Without it nobody can delegate or revoke issuers there, ever.`,
        },
      )
    this.#roots.unsettle(membership.id)
    try {
      this.#rows.remove(membership.id)
    } catch (error) {
      this.#roots.settle(membership.id)
      throw error
    }
    this.#all.delete(membership.id)
    this.#roots.remove(membership.id)
    this.#tell({ id: membership.id, what: 'left' })
  }

  /** Who says hello: what this node shows of itself, as it is at that moment. */
  party(open: () => boolean): Party {
    return {
      key: this.key,
      networks: () => [...this.#all.values()].filter((one) => one.fault() === undefined),
      isOpen: open,
      revocations: (network) => this.#all.get(hexOf(network))?.revocations ?? new Revocations(network),
      now: this.now,
    }
  }

  /** Tells the listener of every change until the returned function is called. */
  onChange(listener: (change: NetworkChange) => void): () => void {
    const own = (change: NetworkChange) => listener(change)
    this.#listeners.add(own)
    return () => void this.#listeners.delete(own)
  }

  /**
   * The root key, and what else it takes to come back into the network, as an age file in text form.
   *
   * @throws {AgentError} `not-found` when it is not here; `usage` when the passphrase is too short
   */
  async exportRoot(id: string, passphrase: string, workFactor?: number): Promise<string> {
    const membership = this.find(id)
    const { name, secret } = membership
    const rootKey = this.#roots.secret(membership.id)
    if (rootKey === undefined) throw rootAbsent(membership)
    const armored = await sealRoot({ id: membership.id, name, secret, rootKey }, passphrase, workFactor)
    this.#rows.setRootExported(membership.id, this.now())
    this.#exported.add(membership.id)
    membership.rootChanged()
    return armored
  }

  /**
   * Brings the root key of a network back to this node.
   *
   * @throws {AgentError} `not-allowed` for a wrong passphrase; `corrupt`; `usage` when it is of another network
   */
  async importRoot(id: string, armored: string, passphrase: string): Promise<void> {
    const membership = this.find(id)
    const root = await openRoot(armored, passphrase)
    if (root.id !== membership.id)
      throw new AgentError('usage', `this is the root key of another network, called "${root.name}" where it was made`)
    this.#takeRoot(membership, root)
  }

  /**
   * Comes into a network with nothing but its exported root key: certifies this node by it. The way back when all nodes that could invite
   * are lost.
   *
   * @throws {AgentError} as importRoot; `taken` when this node is in the network
   */
  async restore(armored: string, passphrase: string, own: Own): Promise<Membership> {
    const root = await openRoot(armored, passphrase)
    const { id, name, secret } = root
    const present = this.#all.get(id)
    if (present !== undefined)
      throw new AgentError('taken', `this node is in that network, and calls it "${present.name}"`)
    checkLabels(own.labels ?? {})
    const network = Uint8Array.from(Buffer.from(id, 'hex'))
    const chain = this.#certify(network, own, signerOf(root.rootKey))
    const membership = this.join({ network, name, secret, chain })
    this.#takeRoot(membership, root)
    return membership
  }

  /** @throws {AgentError} `not-found` when it is not here; `usage` while it was not exported */
  removeRoot(id: string): void {
    const membership = this.find(id)
    if (membership.rootKey === 'absent') throw rootAbsent(membership)
    if (membership.rootKey === 'here')
      throw new AgentError('usage', `the only copy of the root key of "${membership.name}" is here`, {
        next: `Export it first: agent network export-root ${membership.name} --to FILE.`,
      })
    this.#roots.remove(membership.id)
    this.#exported.delete(membership.id)
    this.#rows.setRootExported(membership.id, undefined)
    membership.rootChanged()
  }

  toJSON(): Membership[] {
    return this.list()
  }

  [inspect.custom](): string {
    return `Networks(${this.list()
      .map(({ name }) => name)
      .join(' ')})`
  }

  #certify(network: Uint8Array, { memberName, labels = {} }: Own, root: StatementSigner) {
    const issued = this.now()
    const subject = this.key.publicKey
    const times = { issued, notBefore: issued, notAfter: issued + LIFETIME_MS }
    return issueCertificate({ network, subject, name: nameOf(memberName) ?? 'node', labels, ...times }, root)
  }

  #rejoin(present: Membership, { secret, chain }: Pick<Joined, 'secret' | 'chain'>): Membership {
    if (!sameBytes(secret, present.secret))
      throw new AgentError('not-allowed', `whoever invited has another secret of "${present.name}" than this node`, {
        next: `One of the two was deceived. Leave the network, and join it with a token of somebody you trust.`,
      })
    try {
      present.takeChain(chain)
    } catch (cause) {
      throw new AgentError('not-allowed', `"${present.name}" cannot be joined: ${reasonOf(cause)}`, { cause })
    }
    return present
  }

  #takeRoot(membership: Membership, { id, rootKey }: ExportedRoot): void {
    this.#roots.put(id, rootKey)
    this.#rows.setRootExported(id, this.now())
    this.#exported.add(id)
    membership.rootChanged()
  }

  #enter(row: Kept): Membership {
    const membership = this.#keep(row)
    this.#tell({ id: row.id, what: 'joined' })
    return membership
  }

  #keep({ id, name, secret, chain, rootExportedMs }: Kept): Membership {
    if (rootExportedMs !== undefined) this.#exported.add(id)
    const membership = new Membership({
      id,
      name,
      secret,
      chain,
      key: this.key,
      root: { signer: () => this.#roots.signer(id), isExported: () => this.#exported.has(id) },
      rows: this.#rows,
      now: this.now,
      log: this.#log,
    })
    membership.onChange((what) => this.#tell({ id, what }))
    this.#all.set(id, membership)
    return membership
  }

  /** As many as a hello can speak of. */
  #checkRoom(): void {
    if (this.#all.size >= NETWORKS_MAX)
      throw new AgentError('limit', `a node is in at most ${NETWORKS_MAX} networks`, {
        next: 'Leave another one first.',
      })
  }

  /** The network's own name, with a number when there is another of that name here. */
  #freeName(name: string, id: string): string {
    if (name !== OPEN_NAME && !this.#rows.isTaken(name, id)) return name
    for (let number = 2; ; number++) {
      const numbered = `${name.slice(0, 63 - `-${number}`.length)}-${number}`
      if (!this.#rows.isTaken(numbered, id)) return numbered
    }
  }

  #tell(change: NetworkChange): void {
    for (const listener of this.#listeners) listener(change)
  }
}

function rootAbsent({ name }: Membership): AgentError {
  return new AgentError('not-found', `the root key of "${name}" is not on this node`, {
    next: `Bring it here with \`agent network import-root ${name} FILE\`.`,
  })
}
