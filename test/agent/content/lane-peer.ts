/** Nodes with lanes; and a peer that gives one thing over its lanes and another over its streams. */
import type { Multiaddr } from '@multiformats/multiaddr'
import { onTestFinished } from 'vitest'
import type { LaneFrames } from '../../../agent/content/lane-frames.ts'
import { LaneServer } from '../../../agent/content/lane-server.ts'
import type { LaneSource } from '../../../agent/content/lanes.ts'
import { answerPieces, type PieceHolder } from '../../../protocols/pieces/exchange.ts'
import { serve } from './hostile.ts'
import { ContentNode, type NodeOptions, never, Peer, recordingLog } from './peers.ts'

/** What it gives over streams, though not before it has lanes: else all is there by then; and what over lanes. */
export type Holders = [onStream: PieceHolder, onLane: PieceHolder | ((frames: LaneFrames) => Promise<void>)]

/** Lanes that are being opened for good. */
export const NEVER_OPEN: LaneSource = {
  hasOpen: () => false,
  takeOpen: () => [],
  open: () => new Promise(() => undefined),
  give: async () => undefined,
  hasher: () => undefined,
}

/** Until the test is over. */
export async function laneNode(known: Map<string, Multiaddr[]>, options: NodeOptions = {}): Promise<ContentNode> {
  const made = await ContentNode.start(known, { lanes: {}, ...options })
  onTestFinished(() => made[Symbol.asyncDispose]())
  return made
}

export async function lanePeer(
  known: Map<string, Multiaddr[]>,
  ...[onStream, onLane]: Holders
): Promise<AsyncDisposable & { peerId: string; lanes: LaneServer }> {
  const peer = await Peer.start(known)
  const opened = Promise.withResolvers<void>()
  const get: PieceHolder['get'] = async (...request) => {
    await opened.promise
    return await onStream.get(...request)
  }
  await serve(peer, { ...onStream, get })
  const serveLane = (frames: LaneFrames) => {
    opened.resolve()
    return typeof onLane === 'function' ? onLane(frames) : answerPieces(frames, onLane, never, () => undefined)
  }
  const lanes = (await LaneServer.start({
    streams: peer.streams,
    pieces: { mayGive: () => true, serveLane: (frames) => serveLane(frames).catch(() => undefined) },
    hosts: ['127.0.0.1'],
    port: 0,
    log: recordingLog().log,
  })) as LaneServer
  return {
    peerId: peer.peerId,
    lanes,
    async [Symbol.asyncDispose]() {
      await lanes[Symbol.asyncDispose]()
      await peer[Symbol.asyncDispose]()
    },
  }
}
