/** The OpenAPI document of the local API, made from the table of routes: what it says is what is checked. */
import { z } from 'zod'
import { VERSION } from '../version.ts'
import type { Route } from './route.ts'
import { routes } from './routes.ts'
import { errorBody } from './schemas.ts'

type JsonSchema = { properties?: Record<string, unknown>; required?: string[] }

/** OpenAPI 3.1, whose schemas are JSON Schema 2020-12. */
export function openApi(): Record<string, unknown> {
  const paths: Record<string, Record<string, unknown>> = {}
  for (const route of routes) {
    const path = route.path.replace(/:([a-z]+)/g, '{$1}')
    paths[path] = { ...paths[path], [route.method.toLowerCase()]: operation(route) }
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'undernet agent',
      version: VERSION,
      description: 'The local API of an agent, on its unix socket. Errors are `{ error: { code, message, next } }`.',
    },
    paths,
    components: { schemas: { Error: schemaOf(errorBody, 'output') } },
  }
}

function operation(route: Route): Record<string, unknown> {
  const input = schemaOf(route.input, 'input') as JsonSchema
  const inPath = [...route.path.matchAll(/:([a-z]+)/g)].map(([, name]) => name as string)
  const names = Object.keys(input.properties ?? {})
  const parameters = names
    .filter((name) => route.takes !== 'json' || inPath.includes(name))
    .map((name) => ({
      name,
      in: inPath.includes(name) ? 'path' : 'query',
      required: inPath.includes(name) || (input.required ?? []).includes(name),
      schema: input.properties?.[name],
    }))
  return {
    summary: route.summary,
    operationId: [route.method.toLowerCase(), ...route.path.split('/').slice(2)].join('-').replaceAll(':', ''),
    ...(parameters.length > 0 && { parameters }),
    ...(route.takes === 'json' && {
      requestBody: { required: true, content: { 'application/json': { schema: bodyOf(input, inPath) } } },
    }),
    ...(route.takes === 'query and bytes' && {
      requestBody: { required: true, content: { 'application/octet-stream': {} } },
    }),
    responses: {
      200: { description: 'done', content: replyContent(route) },
      default: {
        description: 'not done',
        content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' } } },
      },
    },
  }
}

/** The body alone: what stands in the path is no part of it. */
function bodyOf({ properties = {}, required = [], ...rest }: JsonSchema, inPath: readonly string[]): JsonSchema {
  const isBody = (name: string) => !inPath.includes(name)
  return {
    ...rest,
    properties: Object.fromEntries(Object.entries(properties).filter(([name]) => isBody(name))),
    required: required.filter(isBody),
  }
}

function replyContent(route: Route): Record<string, unknown> {
  if (route.answers === 'bytes') return { 'application/octet-stream': {} }
  const type = route.answers === 'events' || route.answers === 'lines' ? 'application/x-ndjson' : 'application/json'
  return { [type]: { schema: schemaOf(route.reply, 'output') } }
}

function schemaOf(schema: z.ZodType, io: 'input' | 'output'): unknown {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io }) as Record<string, unknown>
  return rest
}
