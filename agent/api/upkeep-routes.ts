/** The endpoints about the upkeep of a node: the part of the table in routes.ts that UpkeepApi does. */
import { z } from 'zod'
import { type Route, route } from './route.ts'
import * as schemas from './upkeep-schemas.ts'

export const upkeepRoutes: readonly Route[] = [
  route({
    method: 'GET',
    path: 'doctor',
    summary: 'What the agent can check of itself',
    takes: 'query',
    input: z.object({}),
    answers: 'json',
    reply: schemas.doctorResult,
    handle: ({ upkeep }, { signal }) => upkeep.doctor(signal),
  }),
  route({
    method: 'GET',
    path: 'metrics',
    summary: 'What is counted, in the text format of Prometheus',
    takes: 'query',
    input: z.object({}),
    answers: 'json',
    reply: schemas.metrics,
    handle: ({ upkeep }) => upkeep.metrics(),
  }),
  route({
    method: 'POST',
    path: 'backup',
    summary: 'Keys, networks, policies, names, pins and configuration of this node, encrypted with a passphrase',
    takes: 'json',
    input: schemas.backupRequest,
    answers: 'bytes',
    handle: ({ upkeep }, { input }) => upkeep.backup(input),
  }),
]
