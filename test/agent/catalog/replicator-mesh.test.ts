/** Replication over real hosts on loopback: gossip and comparisons as they run in the agent. */
import { describe, expect, it, onTestFinished } from 'vitest'
import { Replicator } from '../../../agent/catalog/replicator.ts'
import { Topic } from '../../../agent/mesh/gossip.ts'
import type { Host } from '../../../agent/mesh/host.ts'
import { Frames } from '../../../protocols/frame.ts'
import { RECORDS_PROTOCOL, RecordsAsker } from '../../../protocols/records/exchange.ts'
import { join, pubsubOf, quiet, startHost } from '../mesh/nodes.ts'
import { clockAt, DAY_MS, makeStore, recordBy, type Store, stateOf, until } from './catalog.ts'

type Node = Store & { host: Host }

async function startNode(): Promise<Node> {
  const store = makeStore({ clock: clockAt(Date.now()) })
  const host = await startHost({ key: store.key })
  const replicator = await Replicator.start({
    records: store.records,
    gossip: Topic.join(pubsubOf(host), '/test/records', quiet),
    peers: host,
    log: quiet,
  })
  onTestFinished(async () => {
    await replicator[Symbol.asyncDispose]()
    store[Symbol.dispose]()
  })
  return { ...store, host }
}

const say = ({ records }: Node, name: string, body: unknown = null) =>
  records.put({ kind: 'note', name, body, leaseMs: DAY_MS })

describe('replication over libp2p', () => {
  it('carries a record over two hops, and everything to who comes late', async () => {
    const nodes = [await startNode(), await startNode(), await startNode()]
    const [a, b, c] = nodes as [Node, Node, Node]
    await join(a.host, b.host)
    await join(c.host, b.host)
    say(a, 'first')
    await until(() => c.records.list('note').length === 1)
    for (let nth = 0; nth < 300; nth++) say(c, `n${nth}`, nth % 30 === 0 ? new Uint8Array(60_000) : nth)
    const late = await startNode()
    await join(late.host, a.host)
    await until(() => new Set([...nodes, late].map(stateOf)).size === 1)
    expect(late.records.list('note')).toHaveLength(301)
  })

  it('ends with a peer that sends a gigabyte for a record, or garbage, and stays up for others', async () => {
    const [node, stranger] = [await startNode(), await startHost()]
    await join(stranger, node.host)
    const signal = AbortSignal.timeout(10_000)
    const open = async () => new Frames(await stranger.openStream(node.host.peerId, RECORDS_PROTOCOL, signal))
    const large = await open()
    await large.writeBytes(Uint8Array.of(0xff, 0xff, 0xff, 0x7f), signal)
    const flooding = (async () => {
      for (let sent = 0; sent < 2 ** 30; sent += 2 ** 20) await large.writeBytes(new Uint8Array(2 ** 20), signal)
    })()
    await expect(flooding).rejects.toMatchObject({ code: 'closed' })
    await expect(open().then((frames) => frames.read(signal))).rejects.toThrow()
    const honest = await startHost()
    await join(honest, node.host)
    const asker = new RecordsAsker(new Frames(await honest.openStream(node.host.peerId, RECORDS_PROTOCOL, signal)))
    const { buckets } = await asker.summary(node.records.network, Date.now(), signal)
    expect(Buffer.compare(buckets, node.records.bucketDigests())).toBe(0)
    const record = recordBy(makeStore().key, { issued: Date.now() })
    expect(await asker.offer([record.bytes, record.bytes], signal)).toEqual({ accepted: 1, refused: 0 })
  })
})
