/** The endpoints about the room that content takes: the part of the table in routes.ts that RoomApi does. */
import { z } from 'zod'
import * as schemas from './room-schemas.ts'
import { type Route, route } from './route.ts'

export const roomRoutes: readonly Route[] = [
  route({
    method: 'GET',
    path: 'pins',
    summary: 'The artifacts that this node keeps whatever the quota',
    takes: 'query',
    input: z.object({}),
    answers: 'json',
    reply: schemas.pins,
    handle: ({ room }) => room.pins(),
  }),
  route({
    method: 'POST',
    path: 'pins',
    summary: 'Keep an artifact with all its parts, fetched first if need be: lines of JSON, the last `done` or `error`',
    takes: 'json',
    input: schemas.pinRequest,
    answers: 'events',
    reply: schemas.pinEvent,
    handle: async ({ room }, { input, emit, signal }) => {
      const progress = (doneBytes: number, totalBytes: number) => emit({ type: 'progress', doneBytes, totalBytes })
      emit({ type: 'done', result: await room.pin(input.ref, progress, signal, input.network) })
    },
  }),
  route({
    method: 'DELETE',
    path: 'pins/:ref',
    summary: 'Keep it no longer; it goes when its room is needed',
    takes: 'query',
    input: schemas.pinRequest,
    answers: 'json',
    reply: schemas.pin,
    handle: ({ room }, { input }) => room.unpin(input.ref, input.network),
  }),
  route({
    method: 'GET',
    path: 'content',
    summary: 'The blobs of this node, or those of one artifact: why each is here, since when, how often it was served',
    takes: 'query',
    input: schemas.contentRequest,
    answers: 'json',
    reply: schemas.contentList,
    handle: ({ room }, { input, signal }) => room.content(input, signal),
  }),
  route({
    method: 'POST',
    path: 'gc',
    summary: 'Free what nothing needs; with all, everything that is not published, pinned or in use',
    takes: 'json',
    input: schemas.gcRequest,
    answers: 'json',
    reply: schemas.gcResult,
    handle: ({ room }, { input, signal }) => room.gc(input, signal),
  }),
]
