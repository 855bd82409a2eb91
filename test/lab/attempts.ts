/**
 * What somebody can try on an agent, each attempt by itself, and what it got: the columns of the table of who gets what.
 *
 * An attempt that neither gets an answer nor is refused in time is no result: it throws.
 */
import type { Stream } from '@libp2p/interface'
import { WireError } from '../../protocols/error.ts'
import { encodeFrame, Frames } from '../../protocols/frame.ts'
import { STATEMENTS_PROTOCOL, StatementsAsker } from '../../protocols/membership/exchange.ts'
import { askRenewal, RENEWAL_PROTOCOL } from '../../protocols/membership/renewal.ts'
import { hexOf } from '../../protocols/membership/statement.ts'
import type { Token } from '../../protocols/membership/token.ts'
import { PIECES_PROTOCOL, PieceAsker } from '../../protocols/pieces/exchange.ts'
import { RECORDS_PROTOCOL, RecordsAsker } from '../../protocols/records/exchange.ts'
import { OPEN_NETWORK } from '../../protocols/records/record.ts'
import { encodeRelayRequest, RELAY_PROTOCOL } from '../../protocols/relay/exchange.ts'
import { until } from '../agents.ts'
import { type Attacker, TRY_MS_MAX } from './attacker.ts'
import type { StockPeer } from './stock-peer.ts'

/** From nothing to everything; `refused` is a no with a reason, or an answer that is the same for what is not there. */
export const LEVELS = ['nothing', 'refused', 'public', 'private'] as const
export type Got = (typeof LEVELS)[number]

/** What is tried on. */
export type Target = {
  /** With its peer id. */
  readonly address: string
  /** The closed network that it is in. */
  readonly network: Uint8Array
  /** What it publishes there. */
  readonly secret: Uint8Array
  readonly secretDigest: Uint8Array
  /** What that is called there. */
  readonly secretName: string
  /** The raw key of another member, that takes no part in the open network. */
  readonly fellow: Uint8Array
  /** What it publishes in the open network; what is nowhere if it takes no part in that. */
  readonly openDigest: Uint8Array
  /** Tokens that let nobody in any more, or never did. */
  readonly tokens: readonly Token[]
}

/** Tries once. */
type Attempt = (from: Attacker, target: Target) => Promise<Got>
type Opener = { open(address: string, protocol: string): Promise<Stream> }

/** Of what got nothing: a busy machine may be late for a hello, and a connection be closed for a better one. */
const TRIES_MAX = 3
const GOSSIP_PROTOCOL = '/meshsub/1.2.0'
const OPEN_TOPIC = `undernet/records/${Buffer.from(OPEN_NETWORK).toString('hex')}`
/** kad-dht's questions, as numbers of its protobuf: who is near a key, who provides it, what is its value. */
const KAD_QUESTIONS = [4, 3, 1]
/** An identify message that says an agent version and nothing else. */
const PUSHED = Buffer.concat([Buffer.from([0x32, 4]), Buffer.from('evil')])

/** What everybody can try who has a connection; the name of the protocol is enough. */
const plain: Record<string, (from: Opener, target: Target) => Promise<Got>> = {
  // libp2p loses a message that comes together with its stream's end and the negotiation before: then it is asked for again.
  identify: (from, { address, ...target }) =>
    until(
      async () => {
        const got = await speak(from.open(address, '/ipfs/id/1.0.0'), async (frames, signal) => {
          const said = await frames.read(signal)
          return said === undefined ? 'lost' : tells(said, target) ? 'private' : 'public'
        })
        return got !== 'lost' && got
      },
      { what: 'an answer to identify' },
    ),
  // It takes one push at a time of a connection, and the one who tries may just be pushing by itself; and what is lost is lost as above.
  'id push': (from, { address }) =>
    gotOfTries(() =>
      until(
        async () => {
          const stream = await from.open(address, '/ipfs/id/push/1.0.0')
          stream.send(encodeFrame(PUSHED))
          await stream.close()
          // Who takes it ends the stream in order; who does not resets it.
          await until(() => stream.status !== 'open' || stream.remoteWriteStatus !== 'writable', {
            what: 'push is taken',
          })
          return stream.status !== 'reset' && 'public'
        },
        { what: 'a push that is taken' },
      ),
    ),
  ping: (from, { address }) =>
    speak(from.open(address, '/ipfs/ping/1.0.0'), async (frames, signal) => {
      await frames.writeBytes(new Uint8Array(32).fill(9), signal)
      await frames.readBytes(32, signal)
      return 'public'
    }),
  // About a key that nobody has, and about the fellow member that strangers know nothing of.
  kad: async (from, { address, ...target }) => {
    const id = Buffer.concat([Buffer.from('002408011220', 'hex'), target.fellow])
    const keys = [Buffer.alloc(32, 7), id, Buffer.concat([Buffer.from('/pk/'), id])]
    const asked = KAD_QUESTIONS.flatMap((question) => keys.map((key) => kadMessage(question, key)))
    const got = asked.map((message) =>
      speak(from.open(address, '/undernet/kad/1'), async (frames, signal) => {
        await frames.write(message, signal)
        const said = await frames.read(signal)
        if (said === undefined) return 'nothing'
        // An answer may repeat the key that was asked for.
        const [before = '', ...after] = hexOf(said).split(hexOf(message.subarray(2)))
        return tells(Buffer.from(before + after.join(''), 'hex'), target) ? 'private' : 'public'
      }),
    )
    return most(await Promise.all(got))
  },
  'open records': (from, { address, ...target }) =>
    speak(from.open(address, RECORDS_PROTOCOL), async (frames, signal) => {
      const records = await readRecords(frames, Uint8Array.from(OPEN_NETWORK), signal)
      return records.length === 0 ? 'refused' : records.some((one) => tells(one, target)) ? 'private' : 'public'
    }),
  'open piece': (from, { address, openDigest }) =>
    speak(from.open(address, PIECES_PROTOCOL), (frames, signal) =>
      getPiece(frames, openDigest, undefined, 'public', signal),
    ),
  'home piece': (from, { address, network, secretDigest }) =>
    speak(from.open(address, PIECES_PROTOCOL), (frames, signal) =>
      getPiece(frames, secretDigest, network, 'private', signal),
    ),
  // The digest was learned somehow: asked for in the open network, and in one that does not exist.
  'home piece, other net': async (from, { address, secretDigest }) => {
    const asked = [undefined, new Uint8Array(32).fill(5)].map((network) =>
      speak(from.open(address, PIECES_PROTOCOL), (frames, signal) =>
        getPiece(frames, secretDigest, network, 'private', signal),
      ),
    )
    return most(await Promise.all(asked))
  },
}

/** What takes a peer that speaks the hello and knows networks. */
const undernet: Record<string, Attempt> = {
  'open gossip': async (from, { address }) => {
    const stream = await from.open(address, GOSSIP_PROTOCOL)
    await until(() => from.gossipsWith(address, OPEN_TOPIC), { what: 'it gossips' })
    stream.abort(new Error('seen'))
    return 'public'
  },
  'hello again': async (from, { address }) => {
    const { members, open } = await from.sayAgain(address)
    return members.length > 0 ? 'private' : open ? 'public' : 'nothing'
  },
  'home records': (from, { address, network }) =>
    speak(from.openIn(address, network, RECORDS_PROTOCOL), async (frames, signal) => {
      const records = await readRecords(frames, network, signal)
      return records.length === 0 ? 'refused' : 'private'
    }),
  // As far as an agent compares before it says anything else.
  'home statements': (from, { address, network }) =>
    speak(from.openIn(address, network, STATEMENTS_PROTOCOL), async (frames, signal) => {
      const asker = new StatementsAsker(frames)
      await asker.summary(signal)
      const policy = await asker.policy(signal)
      await frames.close(signal)
      await frames.read(signal)
      return policy === undefined ? 'nothing' : 'private'
    }),
  // To itself: who may ask at all is told that there is nobody to be carried to.
  'home relay': (from, { address, network }) =>
    speak(from.openIn(address, network, RELAY_PROTOCOL), async (frames, signal) => {
      await frames.write(encodeRelayRequest({ ask: 'to', peer: from.key.publicKey }), signal)
      const said = await frames.read(signal)
      return said === undefined ? 'nothing' : 'private'
    }),
  'home renewal': (from, { address, network }) =>
    speak(from.openIn(address, network, RENEWAL_PROTOCOL), async (frames, signal) => {
      await askRenewal(frames, signal)
      return 'private'
    }),
  'home gossip': async (from, { address, network }) => {
    const stream = await from.openIn(address, network, GOSSIP_PROTOCOL)
    await until(() => stream.status !== 'open' || from.hears(address, network, GOSSIP_PROTOCOL), {
      what: 'gossip of the network, or none',
    })
    return from.hears(address, network) ? 'private' : 'nothing'
  },
  'other nets': async (from, { address, network }) => {
    const others: [Uint8Array, string][] = [
      [new Uint8Array(32).fill(5), RECORDS_PROTOCOL],
      [Uint8Array.from(OPEN_NETWORK), RECORDS_PROTOCOL],
      [network, '/undernet/secrets/1'],
      [network, PIECES_PROTOCOL],
      ...from.credentials
        .filter((one) => Buffer.compare(one.network, network) !== 0)
        .map((one): [Uint8Array, string] => [one.network, RECORDS_PROTOCOL]),
    ]
    const got = others.map(async ([id, protocol]) =>
      speak(from.openIn(address, id, protocol), async (frames, signal) => {
        await readRecords(frames, id, signal)
        return 'private'
      }),
    )
    return most(await Promise.all(got))
  },
  tokens: async (from, { address, tokens }) => {
    const got: Got[] = []
    for (const token of tokens) got.push(await gotOf(() => from.join(token, address).then(() => 'private')))
    return most(got)
  },
}

/** The names of the columns that are attempts, in order. */
export const ATTEMPTS = [...Object.keys(plain), ...Object.keys(undernet)]

/** All attempts of a peer that speaks the hello. */
export async function tryAll(from: Attacker, target: Target): Promise<Record<string, Got>> {
  const row: Record<string, Got> = { 'let in': await letIn(from, target) }
  for (const [column, attempt] of Object.entries({ ...plain, ...undernet }))
    row[column] = await gotOf(() => attempt(from, target))
  // What the first words of the agent say, also to who is then refused.
  const isShown = from.shown.some(({ network }) => Buffer.compare(network, target.network) === 0)
  row['hello told'] = isShown ? 'private' : row['let in'] === 'public' ? 'public' : 'nothing'
  return row
}

/** All that libp2p alone can try. */
export async function tryPlain(from: StockPeer, target: Target): Promise<Record<string, Got>> {
  const row: Record<string, Got> = {}
  for (const [column, attempt] of Object.entries(plain)) row[column] = await gotOf(() => attempt(from, target))
  const others = ['/undernet/hello/1', '/undernet/network/1', GOSSIP_PROTOCOL, '/meshsub/1.1.0', '/floodsub/1.0.0']
  const opened = others.map((protocol) => gotOf<Got>(() => from.open(target.address, protocol).then(() => 'public')))
  // What takes the hello to try: that the protocol is there would be something.
  row['let in'] = most(await Promise.all(opened))
  return row
}

async function letIn(from: Attacker, { address }: Target): Promise<Got> {
  return await gotOfTries(async () => {
    const { members } = await from.enter(address)
    return members.length > 0 ? 'private' : 'public'
  })
}

/** All of them. */
async function readRecords(frames: Frames, network: Uint8Array, signal: AbortSignal): Promise<Uint8Array[]> {
  const asker = new RecordsAsker(frames)
  await asker.summary(network, Date.now(), signal)
  const buckets = Uint8Array.from({ length: 256 }, (_, nth) => nth)
  const publishers = (await asker.publishers(buckets, signal)).map(({ publisher }) => publisher)
  const ids = (await asker.positions(publishers, signal)).flat().map(({ id }) => id)
  return (await asker.records(ids, signal)).filter((one) => one !== null)
}

function kadMessage(question: number, key: Uint8Array): Uint8Array {
  return Buffer.concat([Buffer.from([0x08, question, 0x12, key.byteLength]), key])
}

async function getPiece(
  frames: Frames,
  digest: Uint8Array,
  network: Uint8Array | undefined,
  good: Got,
  signal: AbortSignal,
): Promise<Got> {
  const asker = new PieceAsker(frames, network)
  const [holding] = await asker.have([digest], signal)
  const listed = await gotOf(() => asker.hashes(digest, { sizeBytesMax: 2 ** 30 }, signal).then(() => good))
  const pieces = await gotOf(async () => {
    await asker.askGet(digest, 0, 1, signal)
    await asker.readInto(new Uint8Array(await asker.readGet(signal)), signal)
    return good
  })
  return most([holding ? good : 'refused', listed, pieces])
}

/** Whether what was said names the network, what is in it, or who. */
function tells(
  said: Uint8Array,
  { network, secretDigest, secretName, fellow }: Pick<Target, 'network' | 'secretDigest' | 'secretName' | 'fellow'>,
): boolean {
  return [network, secretDigest, fellow, Buffer.from(secretName)].some((one) => hexOf(said).includes(hexOf(one)))
}

async function speak<Result extends Got | 'lost'>(
  opening: Promise<Stream>,
  words: (frames: Frames, signal: AbortSignal) => Promise<Result>,
): Promise<Result | Got> {
  return await gotOf(async () => {
    const frames = new Frames(await opening)
    try {
      return await words(frames, AbortSignal.timeout(TRY_MS_MAX))
    } finally {
      frames.abort(new Error('that is all'))
    }
  })
}

/** What came of it. Silence and a connection that ends are nothing; an answer that says no is a refusal. */
async function gotOf<Result extends string>(attempt: () => Promise<Result>): Promise<Result | Got> {
  try {
    return await attempt()
  } catch (error) {
    const causes = causesOf(error)
    if (causes.some(({ name }) => name === 'TimeoutError')) throw error
    const words = causes.filter((one) => one instanceof WireError)
    if (words.some(({ code }) => code === 'closed')) return 'nothing'
    return words.some(({ code }) => code === 'refused' || code === 'absent') ? 'refused' : 'nothing'
  }
}

async function gotOfTries(attempt: () => Promise<Got>): Promise<Got> {
  let got: Got = 'nothing'
  for (let tries = 0; got === 'nothing' && tries < TRIES_MAX; tries++) got = await gotOf(attempt)
  return got
}

function causesOf(error: unknown): Error[] {
  if (!(error instanceof Error)) return []
  const inner = error instanceof AggregateError ? error.errors : [error.cause]
  return [error, ...inner.flatMap(causesOf)]
}

function most(got: readonly Got[]): Got {
  return LEVELS.findLast((level) => got.includes(level)) ?? 'nothing'
}
