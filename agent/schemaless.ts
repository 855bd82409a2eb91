/**
 * Fastify without its JSON Schema: what comes in is checked by zod, or by hand, and what goes out is made by JSON.stringify. So its
 * validator (ajv) and serializer are not loaded: 2 MB that an agent would carry for nothing. The bundle leaves their code out.
 */
import type { FastifyServerOptions } from 'fastify'

function unused(): never {
  throw new Error('a route with a JSON Schema: nothing here reads it')
}

export const SCHEMALESS: Pick<FastifyServerOptions, 'schemaController'> = {
  schemaController: { compilersFactory: { buildValidator: unused, buildSerializer: unused } },
}
