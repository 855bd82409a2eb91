/**
 * Gossip: a message that one node publishes reaches every node that joined the topic, and each hop checks it before passing it on.
 * Gossipsub 1.2 (https://github.com/libp2p/specs/tree/master/pubsub/gossipsub) with strict signing; a message's id is the hash of its
 * content, so that a record that comes in by two ways is passed on once.
 *
 * A reject must mean that the bytes are provably wrong, since an honest node would have stopped them: three of them and the sender is
 * ignored. What one merely does not want is ignored instead, at no cost to the sender.
 */
import { createHash } from 'node:crypto'
import {
  type GossipSub,
  type GossipSubComponents,
  type GossipsubOpts,
  gossipsub,
  type MeshPeer,
  type Message,
  StrictSign,
  type TopicValidatorFn,
  TopicValidatorResult,
} from '@libp2p/gossipsub'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { guardIntake, Turns } from './gossip-intake.ts'

type TopicScoreParams = NonNullable<GossipsubOpts['scoreParams']['topics']>[string]

/** A record is at most 72 KiB. */
export const MESSAGE_BYTES_MAX = 72 * 1024
/** One RPC may carry several messages, or the ids of 5,000. */
const RPC_BYTES_MAX = 4 * 1024 * 1024
/** Waiting to be sent to one peer. A peer that falls further behind loses the stream, and catches up by replication. */
const QUEUED_BYTES_MAX = 8 * 1024 * 1024
/** What one peer's subscriptions may take; each costs its name and 1 KiB. */
const TOPIC_BYTES_PER_PEER_MAX = 64 * 1024
/** Ids of recent messages, 34 bytes each, offered to a peer that joins. */
const OFFERED_MAX = 1_000
/** How long counters of a peer that left are kept: long enough that reconnecting is no way to be forgiven. */
const SCORE_KEPT_MS = 10 * 60_000

/**
 * Only invalid messages count. Low-traffic topics must not count deliveries (P3): a quiet peer is not a bad one. Squared and times
 * 10: three rejects are -90, below the graylist threshold of -80; forgotten by half in 69 s.
 */
const TOPIC_SCORE: TopicScoreParams = {
  topicWeight: 1,
  timeInMeshWeight: 0,
  timeInMeshQuantum: 1,
  timeInMeshCap: 1,
  firstMessageDeliveriesWeight: 0,
  firstMessageDeliveriesDecay: 0.5,
  firstMessageDeliveriesCap: 1,
  meshMessageDeliveriesWeight: 0,
  meshMessageDeliveriesDecay: 0.5,
  meshMessageDeliveriesCap: 1,
  meshMessageDeliveriesThreshold: 1,
  meshMessageDeliveriesWindow: 10,
  meshMessageDeliveriesActivation: 1_000,
  meshFailurePenaltyWeight: 0,
  meshFailurePenaltyDecay: 0.5,
  invalidMessageDeliveriesWeight: -10,
  invalidMessageDeliveriesDecay: 0.99,
}

const NOTHING = new Uint8Array(0)

/** Of every gossipsub of this agent: the host's, and later one per network. */
const GOSSIP_OPTIONS: Partial<GossipsubOpts> = {
  globalSignaturePolicy: StrictSign,
  // A node alone publishes too; Topic.publish tells how many peers it reached.
  allowPublishToZeroTopicPeers: true,
  ignoreDuplicatePublishError: true,
  // No floodsub peers: they cannot be scored.
  fallbackToFloodsub: false,
  msgIdFn: ({ data }) => createHash('sha256').update(data).digest(),
  // The same id before anything is checked: a message comes from several peers, and its signature need be verified only once.
  fastMsgIdFn: ({ data }) =>
    createHash('sha256')
      .update(data ?? NOTHING)
      .digest('base64'),
  scoreParams: {
    // Peers behind one NAT, and all of a lab, share an address. With the default, a hub ignores everybody from the eleventh on.
    IPColocationFactorWeight: 0,
    // A message asked for and not sent within 3 s costs a point; a busy machine must not lose its peers by that.
    behaviourPenaltyThreshold: 6,
    retainScore: SCORE_KEPT_MS,
  },
  maxInboundDataLength: RPC_BYTES_MAX,
  // One message of a peer after the other: see gossip-intake.ts.
  awaitRpcHandler: true,
  awaitRpcMessageHandler: true,
  maxOutboundBufferSize: QUEUED_BYTES_MAX,
  maxTopicBytesPerPeer: TOPIC_BYTES_PER_PEER_MAX,
  // One each way is what gossipsub uses; the rest covers a stream being replaced.
  maxInboundStreams: 4,
  maxOutboundStreams: 4,
  // The keeper decides which connections stay.
  tagMeshPeers: false,
}

/** Gossipsub of this agent over the given parts of a libp2p host; one of libp2p's `services`. */
export function makeGossip(components: GossipSubComponents): GossipSub {
  const pubsub = gossipsub(GOSSIP_OPTIONS)(components)
  pubsub.addEventListener('gossipsub:graft', ({ detail }) => offerRecent(pubsub, detail))
  guardIntake(pubsub)
  return pubsub
}

/**
 * Tells a peer that just joined our mesh which messages passed in the last seconds, so that it asks for those that it lacks. Gossipsub
 * alone loses them: it forwards to peers in the mesh, and tells the others; who is taken in between the two, up to a heartbeat after
 * connecting, is neither.
 */
function offerRecent(pubsub: GossipSub, { peerId, topic }: MeshPeer): void {
  const { gossip, mcache } = pubsub as unknown as Insides
  const messageIDs =
    mcache
      .getGossipIDs(new Set([topic]))
      .get(topic)
      ?.slice(-OFFERED_MAX) ?? []
  if (messageIDs.length > 0) gossip.set(peerId, [...(gossip.get(peerId) ?? []), { topicID: topic, messageIDs }])
}

/** What Topic needs of gossipsub. */
export type PubSub = Pick<
  GossipSub,
  'publish' | 'subscribe' | 'unsubscribe' | 'topicValidators' | 'getSubscribers' | 'getTopics'
>

type Verdict = 'accept' | 'ignore' | 'reject'
/** Judges a message and takes what it wants of it. `fromPeerId` is who passed it on, not who wrote it. */
export type Validate = (bytes: Uint8Array, fromPeerId: string) => Verdict | Promise<Verdict>

export class Topic implements Disposable {
  readonly #pubsub: PubSub
  readonly #name: string
  readonly #log: Log
  readonly #turns = new Turns()
  #validate: Validate = () => 'ignore'

  private constructor(pubsub: PubSub, name: string, log: Log) {
    this.#pubsub = pubsub
    this.#name = name
    this.#log = log
  }

  /** Takes part in the topic until disposed. Until subscribe() is called, messages are neither taken nor passed on. */
  static join(pubsub: PubSub, name: string, log: Log): Topic {
    if (pubsub.getTopics().includes(name)) throw new Error(`topic ${name} was joined already`)
    const topic = new Topic(pubsub, name, log)
    ;(pubsub as unknown as Insides).opts.scoreParams.topics[name] = TOPIC_SCORE
    pubsub.topicValidators.set(name, topic.#judge)
    pubsub.subscribe(name)
    return topic
  }

  /**
   * Sends `bytes` to the topic, and resolves with the number of peers that it went to at once (they pass it on).
   * What was published within the last two minutes is not sent again.
   */
  async publish(bytes: Uint8Array): Promise<number> {
    if (bytes.byteLength > MESSAGE_BYTES_MAX) {
      throw new RangeError(`a message of ${bytes.byteLength} bytes; the limit is ${MESSAGE_BYTES_MAX}`)
    }
    const { recipients } = await this.#pubsub.publish(this.#name, bytes)
    return recipients.length
  }

  /** Takes each message that reaches us, once; own messages are not among them. */
  subscribe(validate: Validate): void {
    this.#validate = validate
  }

  /** Peers known to be in the topic. */
  subscribers(): string[] {
    return this.#pubsub.getSubscribers(this.#name).map(String)
  }

  [Symbol.dispose](): void {
    this.#pubsub.unsubscribe(this.#name)
    this.#pubsub.topicValidators.delete(this.#name)
    this.#validate = () => 'ignore'
  }

  #judge: TopicValidatorFn = async (peer, message: Message) => {
    if (message.data.byteLength > MESSAGE_BYTES_MAX) return TopicValidatorResult.Reject
    await this.#turns.take()
    try {
      return RESULTS[await this.#validate(message.data, peer.toString())]
    } catch (error) {
      this.#log.error({ topic: this.#name, reason: reasonOf(error) }, 'gossip.failed')
      return TopicValidatorResult.Ignore
    }
  }
}

const RESULTS: Record<Verdict, TopicValidatorResult> = {
  accept: TopicValidatorResult.Accept,
  ignore: TopicValidatorResult.Ignore,
  reject: TopicValidatorResult.Reject,
}

/** Not in gossipsub's interface; in its class, 17.x. */
type Insides = {
  /** Read whenever a peer is scored, so that topics may be added while it runs. */
  opts: { scoreParams: { topics: Record<string, TopicScoreParams> } }
  mcache: { getGossipIDs(topics: Set<string>): Map<string, Uint8Array[]> }
  /** Goes out with the next message to the peer, or at the next heartbeat. */
  gossip: Map<string, { topicID: string; messageIDs: Uint8Array[] }[]>
}
