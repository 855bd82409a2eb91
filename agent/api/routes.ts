/**
 * The endpoints of the local API, as one table: what each takes, what it answers, and which method of AgentApi does it. The server
 * serves this table, and the OpenAPI document is made from it.
 */
import { z } from 'zod'
import { AgentError } from '../error.ts'
import { imageRoutes } from './image-routes.ts'
import { membershipRoutes } from './membership-routes.ts'
import { namesRoutes } from './names-routes.ts'
import { netcheckRoutes } from './netcheck-routes.ts'
import { roomRoutes } from './room-routes.ts'
import { type Route, route } from './route.ts'
import * as schemas from './schemas.ts'
import { serviceRoutes } from './service-routes.ts'
import { shareRoutes } from './share-routes.ts'
import { upkeepRoutes } from './upkeep-routes.ts'

const nothing = z.object({})

export const routes: readonly Route[] = [
  route({
    method: 'GET',
    path: 'status',
    summary: 'How this node is',
    takes: 'query',
    input: nothing,
    answers: 'json',
    reply: schemas.status,
    handle: (api) => api.status(),
  }),
  route({
    method: 'GET',
    path: 'peers',
    summary: 'The nodes that this one is connected to',
    takes: 'query',
    input: nothing,
    answers: 'json',
    reply: schemas.peers,
    handle: async (api) => ({ peers: await api.peers() }),
  }),
  route({
    method: 'POST',
    path: 'ping',
    summary: 'Measure the round trip to a peer (peer id, name, multiaddr, or name of a service)',
    takes: 'json',
    input: schemas.pingRequest,
    answers: 'json',
    reply: schemas.pingResult,
    handle: (api, { input, signal }) => api.ping(input.peer, signal),
  }),
  route({
    method: 'POST',
    path: 'publish',
    summary: 'Share a Nix store path with its closure',
    takes: 'json',
    input: schemas.publishRequest,
    answers: 'json',
    reply: schemas.publishResult,
    handle: (api, { input, signal }) => api.publishStorePath(input, signal),
  }),
  route({
    method: 'POST',
    path: 'upload',
    summary: 'Share a file, or a folder as a NAR: the body is its bytes',
    takes: 'query and bytes',
    input: schemas.uploadRequest,
    answers: 'json',
    reply: schemas.publishResult,
    handle: (api, { input, upload, signal }) => api.publishUpload(input, upload, signal),
  }),
  route({
    method: 'POST',
    path: 'unpublish',
    summary: 'Stop sharing an artifact of this node',
    takes: 'json',
    input: schemas.refRequest,
    answers: 'json',
    reply: schemas.artifact,
    handle: (api, { input }) => api.unpublish(input.ref, input.network),
  }),
  route({
    method: 'GET',
    path: 'search',
    summary: 'Find artifacts and images by words; all of them, newest first, without words',
    takes: 'query',
    input: schemas.searchRequest,
    answers: 'json',
    reply: schemas.searchResult,
    handle: (api, { input, signal }) => api.search(input.q, input.limit, input.network, signal),
  }),
  route({
    method: 'GET',
    path: 'artifacts/:ref',
    summary: 'One artifact by CID, name, or publisher/name (percent-encoded)',
    takes: 'query',
    input: schemas.refRequest,
    answers: 'json',
    reply: schemas.artifactDetail,
    handle: (api, { input }) => api.artifact(input.ref, input.network),
  }),
  route({
    method: 'POST',
    path: 'fetch',
    summary: 'Bring an artifact to this node: lines of JSON, the last `done` or `error`',
    takes: 'json',
    input: schemas.refRequest,
    answers: 'events',
    reply: schemas.fetchEvent,
    handle: async (api, { input, emit, signal }) => {
      const progress = (doneBytes: number, totalBytes: number) => emit({ type: 'progress', doneBytes, totalBytes })
      emit({ type: 'done', result: await api.fetch(input.ref, progress, signal, input.network) })
    },
  }),
  route({
    method: 'GET',
    path: 'blobs/:digest',
    summary: 'The bytes of a blob that this node holds',
    takes: 'query',
    input: schemas.digestRequest,
    answers: 'bytes',
    handle: async (api, { input }) => {
      const blob = await api.blob(input.digest)
      if (blob === undefined) throw new AgentError('not-found', `this node does not hold the blob ${input.digest}`)
      return blob
    },
  }),
  route({
    method: 'GET',
    path: 'trust',
    summary: 'The keys whose signatures of store paths are believed',
    takes: 'query',
    input: nothing,
    answers: 'json',
    reply: schemas.trustedKeys,
    handle: async (api) => ({ keys: await api.trustedKeys() }),
  }),
  route({
    method: 'POST',
    path: 'trust',
    summary: 'Believe a key',
    takes: 'json',
    input: schemas.keyRequest,
    answers: 'json',
    reply: schemas.trustedKey,
    handle: (api, { input }) => api.trust(input.key),
  }),
  route({
    method: 'DELETE',
    path: 'trust',
    summary: 'Believe a key no more (the key, or its name)',
    takes: 'query',
    input: schemas.keyRequest,
    answers: 'json',
    reply: schemas.trustedKey,
    handle: (api, { input }) => api.distrust(input.key),
  }),
  route({
    method: 'GET',
    path: 'nix-conf',
    summary: 'What nix.conf needs to use this agent',
    takes: 'query',
    input: nothing,
    answers: 'json',
    reply: schemas.nixConf,
    handle: (api) => api.nixConf(),
  }),
  route({
    method: 'GET',
    path: 'config',
    summary: 'Each configuration value, and where it came from',
    takes: 'query',
    input: nothing,
    answers: 'json',
    reply: schemas.config,
    handle: (api) => api.config(),
  }),
  ...upkeepRoutes,
  ...roomRoutes,
  ...shareRoutes,
  ...serviceRoutes,
  ...namesRoutes,
  ...netcheckRoutes,
  ...imageRoutes,
  ...membershipRoutes,
]
