/**
 * One closed network as it runs on this node, from start() until disposed: its catalog in a database of its own, its gossip, its members,
 * what this node publishes there; and what keeps its membership alive: statements, renewal, meeting.
 *
 * Nothing of it reaches who is not in it: all of it runs on the network's scope, where there are members only.
 */
import { rmSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { type Multiaddr, multiaddr } from '@multiformats/multiaddr'
import type { Logger } from 'pino'
import type { Member } from '../../protocols/membership/certificate.ts'
import { OCI_TAG_KIND } from '../../protocols/oci-tag/oci-tag.ts'
import { FILTER_KIND } from '../../protocols/records/filter.ts'
import { Publications, type PublicationsDeps } from '../artifacts/publications.ts'
import { ARTIFACT_KIND, ARTIFACT_LEASE_MS, Artifacts } from '../catalog/artifacts.ts'
import { Filters } from '../catalog/filters.ts'
import { ImageTags, OCI_TAG_LEASE_MS } from '../catalog/image-tags.ts'
import { Members } from '../catalog/members.ts'
import { Nodes } from '../catalog/nodes.ts'
import { Presence, type PresenceOptions } from '../catalog/presence.ts'
import { Records } from '../catalog/records.ts'
import { Renewer } from '../catalog/renewer.ts'
import { Replicator } from '../catalog/replicator.ts'
import { reasonOf } from '../error.ts'
import type { Issuer, Roll } from '../identity/issuing.ts'
import type { Membership } from '../identity/membership.ts'
import type { NodeKey } from '../identity/node-key.ts'
import { peerIdOf, publisherOf } from '../identity/peer-id.ts'
import type { Log } from '../log.ts'
import { comparedScope } from '../membership/compared-scope.ts'
import { Delegations } from '../membership/delegations.ts'
import { Meeting, type MeetingOptions } from '../membership/meeting.ts'
import { Renewal } from '../membership/renewal.ts'
import { Statements } from '../membership/statements.ts'
import { hostIn, isPublicHost } from '../mesh/addresses.ts'
import type { Gate } from '../mesh/gate.ts'
import { Topic } from '../mesh/gossip.ts'
import { guestAddress } from '../mesh/guests.ts'
import type { Host } from '../mesh/host.ts'
import { NetworkGossip } from '../mesh/network-gossip.ts'
import type { NetworkScope, NetworkStreams } from '../mesh/network-streams.ts'
import { FILTER_LEASE_MS } from '../nix/store-filter.ts'
import { type Database, openDatabase } from '../state/database.ts'
import { dropCopy } from '../state/upgrade.ts'
import type { NodePaths } from './paths.ts'
import type { Reach } from './reach.ts'

/** A certificate, to a member that has just connected. */
const HAND_OVER_MS_MAX = 10_000
/** When a network is left: each is a commit, and what is not taken back is forgotten by the others in time. */
const TAKEN_BACK_MAX = 1_000
/** From then on until connections are cut: the members that are connected have heard it. */
const FAREWELL_MS = 500
/** The only topic of a network's gossip, which has nothing in common with any other. */
const TOPIC = 'records'
/** Members of a network that this node wants to be connected to, however many other peers it has: gossip needs some to go round. */
const CONNECTED_MIN = 4
/** In a token: each is fifty bytes, and one may be gone when it is used. */
const RELAYS_INVITED_MAX = 2

/** What is said for long. */
const RENEWED = {
  [ARTIFACT_KIND]: ARTIFACT_LEASE_MS,
  [FILTER_KIND]: FILTER_LEASE_MS,
  [OCI_TAG_KIND]: OCI_TAG_LEASE_MS,
}

export type ClosedNetworkDeps = {
  key: NodeKey
  host: Pick<Host, 'isDirect' | 'links'>
  reach: Pick<Reach, 'addresses' | 'onAddresses'>
  paths: Pick<NodePaths, 'serve' | 'recheck'>
  streams: NetworkStreams
  gate: Pick<Gate, 'memberOf' | 'recheck' | 'refresh'>
  issuer: Issuer
  /** Where databases of networks are. */
  directory: string
  publishing: Omit<PublicationsDeps, 'artifacts' | 'providers' | 'network'>
  /** undefined when this node takes no part in the open network, whose DHT it is. */
  providers: MeetingOptions['providers'] | undefined
  presence: PresenceOptions['body']
  /** What else runs among the members of a network, by its id, until it is disposed. */
  serve: (network: string, scope: NetworkScope, records: Records, images: ImageTags) => Promise<AsyncDisposable>
  /** The services of a network, until it is disposed. */
  route: (parts: Pick<Parts, 'scope' | 'records' | 'members'> & RoutedParts) => Promise<AsyncDisposable>
  /** Told of who may be a member, and of where it says that it can be reached. */
  hear: (peerId: string, addresses: readonly string[]) => void
  log: Logger
}

type RoutedParts = { membership: Membership; db: Database; log: Log }

type Parts = {
  scope: NetworkScope
  statements: Statements
  renewal: Renewal
  records: Records
  members: Members
  nodes: Nodes
  artifacts: Artifacts
  filters: Filters
  images: ImageTags
  publications: Publications
  replicator: Replicator
}

export class ClosedNetwork implements AsyncDisposable {
  readonly membership: Membership
  readonly members: Members
  readonly nodes: Nodes
  readonly artifacts: Artifacts
  /** Of what members give out of their Nix stores. */
  readonly filters: Filters
  readonly images: ImageTags
  readonly publications: Publications
  readonly renewal: Renewal
  readonly #records: Records
  readonly #replicator: Replicator
  readonly #scope: NetworkScope
  readonly #host: ClosedNetworkDeps['host']
  readonly #stack: AsyncDisposableStack

  private constructor(
    membership: Membership,
    parts: Parts,
    host: ClosedNetworkDeps['host'],
    stack: AsyncDisposableStack,
  ) {
    this.membership = membership
    this.#host = host
    this.members = parts.members
    this.nodes = parts.nodes
    this.artifacts = parts.artifacts
    this.filters = parts.filters
    this.#records = parts.records
    this.images = parts.images
    this.publications = parts.publications
    this.renewal = parts.renewal
    this.#replicator = parts.replicator
    this.#scope = parts.scope
    this.#stack = stack
  }

  static async start(membership: Membership, deps: ClosedNetworkDeps): Promise<ClosedNetwork> {
    await using stack = new AsyncDisposableStack()
    const parts = await startParts(membership, deps, stack)
    return new ClosedNetwork(membership, parts, deps.host, stack.move())
  }

  /** What its members say of themselves, for those who issue. */
  get roll(): Roll {
    const { members } = this
    return {
      holderOf: (name) => members.byName(name)[0]?.key,
      memberOf: (key) => members.get(peerIdOf(key)),
    }
  }

  /** For what is counted. */
  get records(): Pick<Records, 'counts' | 'received'> {
    return this.#records
  }

  /** The clocks of members minus ours; undefined when none is known. */
  clockOffsetMs(): number | undefined {
    return this.#replicator.clockOffsetMs()
  }

  /** Connected members. */
  connected(): string[] {
    return this.#scope.connected()
  }

  /** Resolves when a member other than this node is known, or the time is over. */
  async met(msMax: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const look = () => this.members.list().length > 1 && resolve()
    const unlisten = this.members.onChange(look)
    const timer = setTimeout(resolve, msMax)
    look()
    await promise
    clearTimeout(timer)
    unlisten()
  }

  /** Why no member would see what this node publishes, or pushes; undefined when this node itself, or a member that is known, would. */
  publishingRefusal(verb = 'content:publish'): string | undefined {
    const { membership, members } = this
    const own = membership.decide(membership.self, membership.self, verb)
    const seen = (member: Member) => membership.decide(membership.self, member, verb).allowed
    return own.allowed || members.list().some(seen) ? undefined : own.missing
  }

  /** Takes back what this node shares here, as far as anybody is there to hear it: it is about to leave. */
  async farewell(): Promise<void> {
    const own = this.artifacts.own().slice(0, TAKEN_BACK_MAX)
    for (const { name } of own) this.publications.withdraw(name)
    const filters = this.#records.own(FILTER_KIND)
    for (const { kind, name } of filters) this.#records.remove(kind, name)
    const tags = this.images.takeBack(TAKEN_BACK_MAX)
    if (own.length + filters.length + tags > 0 && this.connected().length > 0) await delay(FAREWELL_MS)
  }

  /** Where members let in who has a pass of this node, to carry him here: some of those that this node says that it is reached through. */
  guestAddresses(): Multiaddr[] {
    const named = relaysOf(this.#host, this.#scope).map(peerIdOf).slice(0, RELAYS_INVITED_MAX)
    return named.flatMap((peerId) => {
      const said = this.nodes.get(peerId)?.addresses ?? []
      const here = this.#host.links().find((link) => link.peerId === peerId && link.direction === 'outbound')
      const all = [...said, ...(here ? [here.address] : [])].map((one) => multiaddr(one))
      const [best] = all.toSorted(
        (a, b) => Number(isPublicHost(hostIn(b) ?? '')) - Number(isPublicHost(hostIn(a) ?? '')),
      )
      return best === undefined ? [] : [guestAddress(best, peerId)]
    })
  }

  /** Whether a peer is a member whose connection this node wants, since it has few of them. */
  wants(peerId: string): boolean {
    if (this.members.get(peerId) === undefined) return false
    const connected = this.connected()
    return connected.length < CONNECTED_MIN || (connected.length === CONNECTED_MIN && connected.includes(peerId))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync()
  }
}

/** Forgets what a network that is not running has on the disk. */
export function removeNetwork(directory: string, id: string): void {
  const path = databaseOf(directory, id)
  for (const suffix of ['', '-wal', '-shm']) rmSync(`${path}${suffix}`, { force: true })
  dropCopy(path)
}

async function startParts(
  membership: Membership,
  deps: ClosedNetworkDeps,
  stack: AsyncDisposableStack,
): Promise<Parts> {
  const { key, host, reach, streams, gate, directory, publishing, providers, presence, hear } = deps
  const { id, network } = membership
  const log = deps.log.child({ network: membership.name })
  const db = openDatabase(databaseOf(directory, id))
  stack.defer(() => db.close())
  const scope = stack.use(streams.of(network))
  const statements = stack.use(await Statements.start({ membership, scope, recheck: () => gate.recheck(), log }))
  const records: Records = stack.use(
    new Records(db, { network, signer: key, admits: (record) => members.admits(record), log }),
  )
  const members: Members = stack.use(Members.start({ records, membership, log }))
  stack.use(Delegations.start({ membership, records, log }))
  const nodes = stack.use(new Nodes(records))
  const welcomes = (publisher: Uint8Array) => {
    const member = members.of(publisher)
    return member !== undefined && membership.decide(member, membership.self, 'content:publish').allowed
  }
  const artifacts = stack.use(new Artifacts({ db, records, nodes, welcomes }))
  const filters = stack.use(new Filters({ records, nodes, welcomes }))
  const mayPush = (publisher: Uint8Array, repository: string) => {
    const member = members.of(publisher)
    return member !== undefined && membership.decide(member, membership.self, `image:push ${repository}`).allowed
  }
  const images = stack.use(new ImageTags({ db, records, nodes, mayPush }))
  const publications = new Publications({ ...publishing, network: id, artifacts })
  const peers = comparedScope(scope, statements)
  const gossip = stack.use(await NetworkGossip.start(key, peers))
  const topic = stack.use(Topic.join(gossip.pubsub, TOPIC, log))
  const replicator = stack.use(await Replicator.start({ records, gossip: topic, peers, members, log }))
  stack.use(await deps.serve(id, scope, records, images))
  stack.use(await deps.route({ membership, scope, db, records, members, log }))
  const renewal = await startRenewal(membership, { scope, members }, deps, stack, log)
  stack.use(Renewer.start({ records, leases: RENEWED, log }))
  const relays = () => relaysOf(host, scope)
  const addresses = () => reach.addresses()
  const said = stack.use(
    Presence.start({ records, body: presence, addresses, relays, nodeCount: () => nodes.count, log }),
  )
  stack.defer(reach.onAddresses(() => said.addressesChanged()))
  stack.defer(scope.onPeer(() => said.relaysChanged()))
  stack.defer(scope.onPeerGone(() => said.relaysChanged()))
  stack.use(
    await deps.paths.serve(id, {
      scope,
      isMember: (peerId) => members.get(peerId) !== undefined,
      issues: (peerId) => members.get(peerId)?.issues === true,
      relaysOf: (peerId) => nodes.get(peerId)?.relays ?? [],
      mayUse: (peerId) => {
        const member = gate.memberOf(network, peerId)
        return member !== undefined && membership.decide(member, membership.self, 'relay:use').allowed
      },
    }),
  )
  stack.defer(membership.onChange((what) => what === 'policy' && deps.paths.recheck(id)))
  stack.defer(nodes.onAddresses((peerId, addresses) => hear(peerId, addresses)))
  if (providers !== undefined) {
    const connectedCount = () => scope.connected().length
    stack.use(Meeting.start({ membership, providers, hear: (peerId) => hear(peerId, []), connectedCount, log }))
  }
  return { scope, statements, renewal, records, members, nodes, artifacts, filters, images, publications, replicator }
}

/** Renewal, which also hands connected members what was signed for them while they were away. */
async function startRenewal(
  membership: Membership,
  { scope, members }: Pick<Parts, 'scope' | 'members'>,
  { gate, issuer }: ClosedNetworkDeps,
  stack: AsyncDisposableStack,
  log: Log,
): Promise<Renewal> {
  const { network } = membership
  const renew = (subject: Uint8Array) => {
    const chain = issuer.renew(membership, subject, gate.memberOf(network, peerIdOf(subject))?.chain)
    return 'fault' in chain ? chain.fault : chain
  }
  const issuers = () => members.list().flatMap(({ peerId, issues }) => (issues ? [peerId] : []))
  const refresh = (peerId: string, signal: AbortSignal) => gate.refresh(peerId, signal)
  const renewal = stack.use(await Renewal.start({ membership, scope, renew, issuers, refresh, log }))
  const handOwed = async (peerId: string) => {
    const member = gate.memberOf(network, peerId)
    const chain = member && issuer.owed(membership, member.chain)
    if (chain !== undefined) await renewal.push(peerId, chain, AbortSignal.timeout(HAND_OVER_MS_MAX))
  }
  stack.defer(
    scope.onPeer((peerId) => {
      // What was not handed over stays owed.
      handOwed(peerId).catch((error: unknown) => log.debug({ peerId, reason: reasonOf(error) }, 'certificate.owed'))
    }),
  )
  return renewal
}

/** Members through whom this node can be reached: those that it dialled first, since others can dial them too. */
function relaysOf(host: Pick<Host, 'links'>, scope: Pick<NetworkScope, 'connected'>): Uint8Array[] {
  const members = new Set(scope.connected())
  const direct = host.links().filter(({ peerId, path }) => path === 'direct' && members.has(peerId))
  const sorted = direct.toSorted((a, b) => a.direction.localeCompare(b.direction) * -1 || a.connectedMs - b.connectedMs)
  return sorted.flatMap(({ peerId }) => publisherOf(peerId) ?? [])
}

function databaseOf(directory: string, id: string): string {
  return `${directory}/${id}.db`
}
