/** Fetches into a directory in a process of its own, to be killed: argv is directory, digest, peer id, address. */
import { multiaddr } from '@multiformats/multiaddr'
import { Fetcher } from '../../agent/content/fetcher.ts'
import { OPEN_NETWORK_ID } from '../../agent/content/publication-key.ts'
import { never, Peer, Store } from '../agent/content/peers.ts'

const [directory = '', digest = '', peerId = '', address = ''] = process.argv.slice(2)
const peer = await Peer.start(new Map([[peerId, [multiaddr(address)]]]))
const store = new Store({ directory })
const fetcher = new Fetcher({ blobs: store.blobs, streams: peer.streams, self: peer.peerId, log: store.log })
process.send?.('ready')
const onProgress = (doneBytes: number) => process.send?.(doneBytes)
await fetcher.fetch(digest, { network: OPEN_NETWORK_ID, sources: [peerId], signal: never, onProgress })
process.send?.('done')
process.exit(0)
