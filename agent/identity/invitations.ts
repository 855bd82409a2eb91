/**
 * Invitations that this node made: their secrets, whom they let in as what, and who has used them. A token is honoured here and nowhere
 * else, so what is counted here is counted once, whoever comes at the same moment, and also when the power fails.
 *
 * A use counts by key: who comes again gets a certificate again, since the answer may have been lost, but as what it is by now and not as
 * what the invitation said. What has expired or is used up is kept for a week, so that its holder is told why; what was withdrawn is
 * forgotten at once.
 */
import { randomBytes } from 'node:crypto'
import type { Multiaddr } from '@multiformats/multiaddr'
import type { Grant, TokenDesk, TokenFault } from '../../protocols/hello/hello.ts'
import { encodePass } from '../../protocols/membership/pass.ts'
import { hexOf } from '../../protocols/membership/statement.ts'
import { TOKEN_SECRET_BYTES, type Token, tokenId } from '../../protocols/membership/token.ts'
import { NAME_GLOB_PATTERN } from '../../protocols/membership/words.ts'
import { AgentError } from '../error.ts'
import { type Database, durably, migrate } from '../state/database.ts'
import type { Issuer } from './issuing.ts'
import { checkLabels, nameOf } from './member-names.ts'
import type { Membership } from './membership.ts'
import type { Networks } from './networks.ts'

/** How long the holder of a token that ended is told so. */
const ENDED_KEPT_MS = 7 * 24 * 3_600_000
/** Of a fleet's token. Each use is a row. */
const USES_MAX = 10_000
/** A token in a configuration lives long; one that outlives its machines is forgotten by whoever made it. */
const LIFETIME_MS_MAX = 366 * 24 * 3_600_000
/** Those that ended included. */
const INVITATIONS_MAX = 1_000
/** The beginning of an id that people type. */
const PREFIX_LENGTH_MIN = 4

/** After those of Networks. */
const SCHEMA = [
  `CREATE TABLE invitations (
     id TEXT PRIMARY KEY,
     network TEXT NOT NULL REFERENCES networks (id) ON DELETE CASCADE,
     secret BLOB NOT NULL,
     name TEXT,
     labels TEXT NOT NULL,
     uses INTEGER NOT NULL,
     issued_ms INTEGER NOT NULL,
     expires_ms INTEGER NOT NULL
   ) STRICT;
   CREATE TABLE invitation_uses (
     invitation TEXT NOT NULL REFERENCES invitations (id) ON DELETE CASCADE,
     key TEXT NOT NULL,
     used_ms INTEGER NOT NULL,
     PRIMARY KEY (invitation, key)
   ) STRICT;`,
]

export type InvitationWish = {
  readonly membership: Membership
  /** Where this node listens; without peer ids. */
  readonly addresses: readonly Multiaddr[]
  /** Where members let newcomers in, to carry them to this node. */
  readonly relays?: readonly Multiaddr[]
  /** A name, or a pattern with one `*`; otherwise the newcomer's own. */
  readonly name?: string | undefined
  readonly labels?: Readonly<Record<string, string>>
  /** How many keys may use it; 1 if not said. */
  readonly uses?: number
  readonly expires: number
}

export type Invitation = {
  /** Tells nothing of the secret; in hexadecimal. */
  readonly id: string
  /** The network's id. */
  readonly network: string
  readonly name: string | undefined
  readonly labels: Readonly<Record<string, string>>
  readonly uses: number
  readonly used: number
  readonly issued: number
  readonly expires: number
  readonly state: 'open' | 'used-up' | 'expired'
}

/** A newcomer that was let in. */
export type Redeemed = {
  readonly membership: Membership
  readonly invitation: string
  readonly key: Uint8Array
  readonly name: string
}

type Row = {
  id: string
  network: string
  secret: Uint8Array
  name: string | null
  labels: string
  uses: number
  issued_ms: number
  expires_ms: number
  used: number
  last_used_ms: number | null
}

const SELECT = `SELECT invitations.*, count(used_ms) AS used, max(used_ms) AS last_used_ms
  FROM invitations LEFT JOIN invitation_uses ON invitation = id`

export type InvitationsOptions = {
  readonly db: Database
  readonly networks: Pick<Networks, 'get' | 'key'>
  readonly issuer: Issuer
  readonly now?: () => number
  /** Told when a key uses an invitation for the first time, and that is stored. */
  readonly onRedeemed?: (redeemed: Redeemed) => void
}

export class Invitations implements TokenDesk {
  readonly #options: InvitationsOptions
  readonly #db: Database
  readonly #now: () => number

  constructor(options: InvitationsOptions) {
    migrate(options.db, 'invitations', SCHEMA)
    this.#options = options
    this.#db = options.db
    this.#now = options.now ?? Date.now
    this.#forgetEnded()
  }

  /**
   * Invites. The token is a secret: whoever has it can use it.
   *
   * @throws {AgentError} `usage`, `not-allowed` when this node could not issue what is promised, `limit`
   */
  create(wish: InvitationWish): { token: Token; invitation: Invitation } {
    const { membership, relays = [], name, labels = {}, uses = 1, expires } = wish
    const now = this.#now()
    checkWish({ name, labels, uses, lifetimeMs: expires - now })
    const { key } = this.#options.networks
    const example = this.#options.issuer.nameFor(membership, randomBytes(32), undefined, name)
    this.#options.issuer.check(membership, { subject: key.publicKey, name: example, labels })
    this.#forgetEnded()
    if (this.list().length >= INVITATIONS_MAX)
      throw new AgentError('limit', `there are ${INVITATIONS_MAX} invitations already`, {
        next: 'Withdraw some first.',
      })
    const secret = Uint8Array.from(randomBytes(TOKEN_SECRET_BYTES))
    const id = hexOf(tokenId(secret))
    durably(this.#db, () =>
      this.#db
        .prepare('INSERT INTO invitations VALUES (?, ?, ?, ?, ?, ?, ?, ?)')
        .run(id, membership.id, secret, name ?? null, JSON.stringify(labels), uses, now, expires),
    )
    const invitation = this.#read(this.#row(id) as Row)
    const { network } = membership
    // Only where somebody carries: it makes the token longer.
    const pass = relays.length > 0 ? encodePass({ network, expires }, key).bytes : undefined
    const addresses = [...wish.addresses, ...relays]
    return { token: { network, issuer: key.publicKey, addresses, secret, expires, pass }, invitation }
  }

  /** Newest first; of one network, by its id, or of all. */
  list(network?: string): Invitation[] {
    const rows = this.#db.prepare(`${SELECT} GROUP BY id ORDER BY issued_ms DESC, id`).all() as Row[]
    return rows.filter((row) => network === undefined || row.network === network).map((row) => this.#read(row))
  }

  /**
   * Takes an invitation back: from now on nobody knows it. Who is in stays in.
   *
   * @throws {AgentError} `not-found`; `usage` when several ids begin so
   */
  withdraw(reference: string): Invitation {
    const isPrefix = reference.length >= PREFIX_LENGTH_MIN
    const [found, ...others] = isPrefix ? this.list().filter(({ id }) => id.startsWith(reference.toLowerCase())) : []
    if (others.length > 0) throw new AgentError('usage', `several invitations have an id that begins with ${reference}`)
    if (found === undefined)
      throw new AgentError('not-found', `this node made no invitation ${reference.slice(0, 80)}`, {
        next: 'Those that it made are in `agent network show`.',
      })
    durably(this.#db, () => this.#db.prepare('DELETE FROM invitations WHERE id = ?').run(found.id))
    return found
  }

  find(id: Uint8Array): Pick<Token, 'network' | 'secret'> | undefined {
    const row = this.#row(hexOf(id))
    const membership = row && this.#options.networks.get(row.network)
    if (row === undefined || membership === undefined || this.#isForgotten(row)) return undefined
    return { network: membership.network, secret: row.secret }
  }

  /** Synchronous, and one transaction: of two that come at the same moment, one comes first. */
  redeem(id: Uint8Array, key: Uint8Array, wished?: string): Grant | TokenFault {
    const { networks, issuer, onRedeemed } = this.#options
    const row = this.#row(hexOf(id))
    const membership = row && networks.get(row.network)
    if (row === undefined || membership === undefined || this.#isForgotten(row)) return 'unknown-token'
    if (membership.revocations.isRevoked(key)) return 'revoked'
    const isAgain = this.#hasUsed(row.id, key)
    if (!isAgain && row.used >= row.uses) return 'used-up'
    if (this.#now() >= row.expires_ms) return 'token-expired'
    if (membership.can('issue') === undefined || membership.fault() !== undefined) return 'not-issuing'
    try {
      const chain = durably(this.#db, () => {
        const known = isAgain ? issuer.known(membership, key) : undefined
        const name = known?.name ?? issuer.nameFor(membership, key, wished, row.name ?? undefined)
        const labels = known?.labels ?? (JSON.parse(row.labels) as Record<string, string>)
        this.#db.prepare('INSERT OR IGNORE INTO invitation_uses VALUES (?, ?, ?)').run(row.id, hexOf(key), this.#now())
        return issuer.issue(membership, { subject: key, name, labels })
      })
      if (!isAgain) onRedeemed?.({ membership, invitation: row.id, key, name: chain.statement.name })
      return { name: membership.name, secret: membership.secret, chain }
    } catch (error) {
      // Its delegation allows no such name any more, or the name makes the certificate too long.
      if (error instanceof AgentError) return 'not-issuing'
      throw error
    }
  }

  #row(id: string): Row | undefined {
    return this.#db.prepare(`${SELECT} WHERE id = ? GROUP BY id`).get(id) as Row | undefined
  }

  #hasUsed(id: string, key: Uint8Array): boolean {
    return (
      this.#db.prepare('SELECT 1 FROM invitation_uses WHERE invitation = ? AND key = ?').get(id, hexOf(key)) !==
      undefined
    )
  }

  #read(row: Row): Invitation {
    const { id, network, uses, used } = row
    const isExpired = this.#now() >= row.expires_ms
    return {
      id,
      network,
      name: row.name ?? undefined,
      labels: JSON.parse(row.labels) as Record<string, string>,
      uses,
      used,
      issued: row.issued_ms,
      expires: row.expires_ms,
      state: used >= uses ? 'used-up' : isExpired ? 'expired' : 'open',
    }
  }

  #isForgotten(row: Row): boolean {
    const usedUp = row.used >= row.uses ? (row.last_used_ms ?? row.issued_ms) : Number.POSITIVE_INFINITY
    return this.#now() >= Math.min(row.expires_ms, usedUp) + ENDED_KEPT_MS
  }

  #forgetEnded(): void {
    const rows = this.#db.prepare(`${SELECT} GROUP BY id`).all() as Row[]
    const ended = rows.filter((row) => this.#isForgotten(row))
    if (ended.length === 0) return
    durably(this.#db, () => {
      for (const { id } of ended) this.#db.prepare('DELETE FROM invitations WHERE id = ?').run(id)
    })
  }
}

type Checked = Required<Pick<InvitationWish, 'labels' | 'uses'>> & { name: string | undefined; lifetimeMs: number }

/** @throws {AgentError} `usage` */
function checkWish({ name, labels, uses, lifetimeMs }: Checked): void {
  checkLabels(labels)
  if (!Number.isInteger(uses) || uses < 1 || uses > USES_MAX)
    throw new AgentError('usage', `an invitation has 1 to ${USES_MAX} uses`)
  if (!(lifetimeMs > 0 && lifetimeMs <= LIFETIME_MS_MAX))
    throw new AgentError('usage', 'an invitation lasts a year at most, and not less than nothing')
  if (name === undefined) return
  const isGood = NAME_GLOB_PATTERN.test(name) && nameOf(name.replace('*', 'x')) === name.replace('*', 'x')
  if (!isGood)
    throw new AgentError('usage', `"${name.slice(0, 80)}" cannot be a member's name`, {
      next: "Take small letters, digits and hyphens, at most 63; a * stands for what tells members apart: 'ci-*'.",
    })
}
