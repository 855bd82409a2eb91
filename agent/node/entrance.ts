/**
 * Who may come in, and what is told of it: the networks that this node is in, what it signs for them, the invitations that it made, the
 * gate that judges every connection by them, and the audit log of all of that.
 */
import { join } from 'node:path'
import type { Admission } from '../../protocols/hello/hello.ts'
import { networkOf } from '../../protocols/membership/network.ts'
import type { RevocationFields } from '../../protocols/membership/revocation.ts'
import { hexOf, sameBytes } from '../../protocols/membership/statement.ts'
import { OPEN_NETWORK_ID } from '../content/publication-key.ts'
import { Audit } from '../identity/audit.ts'
import { Invitations } from '../identity/invitations.ts'
import { Issuer, type IssuerOptions } from '../identity/issuing.ts'
import type { Membership } from '../identity/membership.ts'
import { type NetworkChange, Networks } from '../identity/networks.ts'
import type { NodeKey } from '../identity/node-key.ts'
import { peerIdOf } from '../identity/peer-id.ts'
import type { Log } from '../log.ts'
import { Gate } from '../mesh/gate.ts'
import type { Database } from '../state/database.ts'

const AUDIT_FILE = 'audit.jsonl'
const NETWORKS_DIRECTORY = 'networks'
/** What the open network is called for people. */
export const OPEN_NETWORK_NAME = 'open'

export type EntranceOptions = {
  db: Database
  /** The state directory. */
  directory: string
  key: NodeKey
  /** Whether this node takes part in the open network. */
  open: boolean
  /** What the members of a network say of themselves. */
  roll: NonNullable<IssuerOptions['roll']>
  log: Log
}

export class Entrance implements Disposable {
  readonly networks: Networks
  readonly issuer: Issuer
  readonly invitations: Invitations
  readonly audit: Audit
  readonly gate: Gate
  /** Whether this node takes part in the open network. */
  readonly isOpen: boolean
  /** Where what belongs to a network is kept. */
  readonly directory: string
  /** Those that the log has, by id. */
  readonly #revocations = new Set<string>()

  constructor({ db, directory, key, open, roll, log }: EntranceOptions) {
    this.isOpen = open
    this.directory = join(directory, NETWORKS_DIRECTORY)
    this.audit = new Audit({ path: join(directory, AUDIT_FILE), log })
    this.networks = new Networks({ db, directory: this.directory, key, log })
    this.issuer = new Issuer({ db, roll })
    this.invitations = new Invitations({
      db,
      networks: this.networks,
      issuer: this.issuer,
      onRedeemed: ({ membership, invitation, key: member, name }) =>
        this.audit.append({
          event: 'member.joined',
          network: membership.name,
          peerId: peerIdOf(member),
          name,
          invitation,
        }),
    })
    this.gate = new Gate({
      party: this.networks.party(() => open),
      desk: this.invitations,
      joined: (joined) => {
        const membership = this.networks.join(joined)
        this.audit.append({ event: 'network.joined', network: membership.name, name: membership.self.name })
      },
      onAdmitted: (peerId, admission) => this.#tellAdmitted(peerId, admission),
      onRefused: ({ peerId, address, wasIn, why }) =>
        this.audit.append({ event: wasIn ? 'peer.cut' : 'peer.refused', peerId, address, why }),
      log,
    })
    for (const { revocations } of this.networks.list()) this.#noteNew(revocations)
    this.networks.onChange(({ id, what }) => {
      const membership = this.networks.get(id)
      if (membership !== undefined) this.#tellChange(membership, what)
    })
  }

  /** Whether a peer may have what this node has in a network, by its id, when one of the verbs is given to it. Asked for each request. */
  mayFetch(peerId: string, id: string, verbs: readonly string[] = ['content:fetch']): boolean {
    // What everybody may have.
    if (id === OPEN_NETWORK_ID) return this.isOpen
    const membership = this.networks.get(id)
    const member = membership && this.gate.memberOf(membership.network, peerId)
    if (membership === undefined || member === undefined) return false
    let why = ''
    for (const verb of verbs) {
      const decision = membership.decide(member, membership.self, verb)
      if (decision.allowed) return true
      why ||= decision.missing
    }
    this.audit.append({ event: 'access.refused', network: membership.name, peerId, name: member.name, why })
    return false
  }

  /** Whether a peer may be asked for what is in a network: nobody is to learn of a network that he is not in. */
  mayAsk(peerId: string, id: string): boolean {
    if (id === OPEN_NETWORK_ID) return this.isOpen
    const membership = this.networks.get(id)
    return membership !== undefined && this.gate.memberOf(membership.network, peerId) !== undefined
  }

  /** A peer signed what is false, in a network by its id. */
  noteLie({ peerId, network, digest }: { peerId: string; network: string; digest: string }): void {
    const membership = this.networks.get(network)
    const name = membership && this.gate.memberOf(membership.network, peerId)?.name
    const where = membership?.name ?? OPEN_NETWORK_NAME
    this.audit.append({ event: 'peer.lied', network: where, peerId, name, why: `a false piece list of ${digest}` })
  }

  /** Names of the networks shared with a connected peer. */
  sharedWith(peerId: string): string[] {
    const { open = false, members = [] } = this.gate.admitted(peerId) ?? {}
    const closed = members.flatMap(({ network }) => this.networks.get(hexOf(network))?.name ?? [])
    return open ? [OPEN_NETWORK_NAME, ...closed] : closed
  }

  [Symbol.dispose](): void {
    this.gate[Symbol.dispose]()
    this.audit[Symbol.dispose]()
  }

  /** Whoever changed it, here or elsewhere. */
  #tellChange(membership: Membership, what: NetworkChange['what']): void {
    const network = membership.name
    const nameOf = (key: Uint8Array) =>
      sameBytes(networkOf(key), membership.network) ? 'root key' : (this.#nameOf(membership, key) ?? peerIdOf(key))
    if (what === 'certificate') this.audit.append({ event: 'certificate.renewed', network, name: membership.self.name })
    if (what === 'policy' && membership.policy !== undefined) {
      const { version, issuer } = membership.policy.statement
      this.audit.append({ event: 'policy.changed', network, version, by: nameOf(issuer) })
    }
    if (what !== 'revocations') return
    for (const { key, scope, reason, issuer } of this.#noteNew(membership.revocations)) {
      const peerId = peerIdOf(key)
      const name = this.#nameOf(membership, key)
      const event = scope === 'issuer' ? 'issuer.revoked' : 'member.revoked'
      this.audit.append({ event, network, peerId, name, by: nameOf(issuer), why: reason })
    }
  }

  /** Revocations that were not noted before. */
  #noteNew(revocations: Membership['revocations']): RevocationFields[] {
    const fresh = revocations.list().filter(({ statement }) => !this.#revocations.has(hexOf(statement.id)))
    for (const { statement } of fresh) this.#revocations.add(hexOf(statement.id))
    return fresh.map(({ statement }) => statement)
  }

  #nameOf(membership: Membership, key: Uint8Array): string | undefined {
    return sameBytes(key, membership.self.key) ? membership.self.name : this.issuer.known(membership, key)?.name
  }

  /** A line for each network that lets the peer in, under what it is called there. */
  #tellAdmitted(peerId: string, { open, members }: Admission): void {
    for (const { network, name } of members) {
      const known = this.networks.get(hexOf(network))?.name
      this.audit.append({ event: 'peer.admitted', peerId, name, network: known, rule: 'member' })
    }
    if (open) this.audit.append({ event: 'peer.admitted', peerId, network: OPEN_NETWORK_NAME, rule: 'open network' })
  }
}
