/** The endpoints about images: the part of the table in routes.ts that ImageApi does. */
import * as schemas from './image-schemas.ts'
import { type Route, route } from './route.ts'

export const imageRoutes: readonly Route[] = [
  route({
    method: 'GET',
    path: 'images',
    summary: 'Find images by words; all of them, the last moved first, without words',
    takes: 'query',
    input: schemas.listRequest,
    answers: 'json',
    reply: schemas.imageList,
    handle: ({ images }, { input, signal }) => images.list(input.q, input.limit, input.network, signal),
  }),
  route({
    method: 'GET',
    path: 'images/:ref',
    summary: 'One image by network/repository:tag (percent-encoded)',
    takes: 'query',
    input: schemas.refRequest,
    answers: 'json',
    reply: schemas.imageDetail,
    handle: ({ images }, { input, signal }) => images.show(input.ref, signal),
  }),
  route({
    method: 'GET',
    path: 'images/:ref/history',
    summary: 'What a tag meant before, and who moved it',
    takes: 'query',
    input: schemas.historyRequest,
    answers: 'json',
    reply: schemas.imageHistory,
    handle: ({ images }, { input }) => images.history(input.ref, input.limit),
  }),
  route({
    method: 'DELETE',
    path: 'images/:ref',
    summary: 'Delete a tag, for everybody in its network',
    takes: 'query',
    input: schemas.refRequest,
    answers: 'json',
    reply: schemas.imageRemoved,
    handle: ({ images }, { input, signal }) => images.remove(input.ref, signal),
  }),
  route({
    method: 'GET',
    path: 'oci-conf/:program',
    summary: 'What containerd, podman or docker have to have to pull through this agent',
    takes: 'query',
    input: schemas.confRequest,
    answers: 'json',
    reply: schemas.ociConf,
    handle: ({ images }, { input }) => images.conf(input.program),
  }),
]
