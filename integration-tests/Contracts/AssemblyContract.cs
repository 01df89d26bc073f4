using System.Collections.Immutable;
using System.Reflection;
using System.Reflection.Metadata;
using System.Reflection.Metadata.Ecma335;
using System.Reflection.PortableExecutable;
using System.Text.RegularExpressions;

namespace VmmService.IntegrationTests.Contracts;

/// <summary>
/// Reads from an assembly's metadata, without loading it, what it asks of other assemblies and what it has to offer. Both are written in one
/// notation, so
/// that a reference resolves if and only if the strings are equal. <see cref="ContractsResolveTests"/> compares the two.
/// </summary>
internal sealed class AssemblyContract : IDisposable
{
    private readonly PEReader _file;
    private readonly MetadataReader _metadata;
    private readonly SignatureNames _names;

    internal AssemblyContract(string path)
    {
        Path = path;
        _file = new PEReader(File.OpenRead(path));
        _metadata = _file.GetMetadataReader();
        _names = new SignatureNames(_metadata);
    }

    internal string Path { get; }

    public void Dispose() => _file.Dispose();

    /// <summary>Types of the named assemblies that this one refers to.</summary>
    internal IEnumerable<string> TypesAskedOf(IReadOnlySet<string> assemblies) =>
        _metadata.TypeReferences.Where(type => assemblies.Contains(_names.AssemblyOf(type))).Select(_names.Of);

    /// <summary>Members of types of the named assemblies that this one refers to: the type, and the member with its signature.</summary>
    internal IEnumerable<(string Type, string Member)> MembersAskedOf(IReadOnlySet<string> assemblies)
    {
        foreach (var handle in _metadata.MemberReferences)
        {
            var member = _metadata.GetMemberReference(handle);
            if (_names.ReferredType(member.Parent, out _) is not { } type || !assemblies.Contains(_names.AssemblyOf(type))) continue;
            yield return (_names.Of(type), member.GetKind() == MemberReferenceKind.Method
                ? Method(_metadata.GetString(member.Name), member.DecodeMethodSignature(_names, null))
                : Field(_metadata.GetString(member.Name), member.DecodeFieldSignature(_names, null)));
        }
    }

    /// <summary>
    /// Methods here that override something: the type of the named assemblies that is directly above, the arguments it has if it is generic, and the
    /// method.
    /// </summary>
    internal IEnumerable<(string Type, ImmutableArray<string> Arguments, string Member)> OverridesOf(IReadOnlySet<string> assemblies)
    {
        foreach (var handle in _metadata.TypeDefinitions)
        {
            var type = _metadata.GetTypeDefinition(handle);
            if (_names.ReferredType(type.BaseType, out var arguments) is not { } above || !assemblies.Contains(_names.AssemblyOf(above))) continue;
            foreach (var method in type.GetMethods().Select(_metadata.GetMethodDefinition))
            {
                var takesSlotFromAbove = method.Attributes.HasFlag(MethodAttributes.Virtual) && !method.Attributes.HasFlag(MethodAttributes.NewSlot);
                if (!takesSlotFromAbove) continue;
                yield return (_names.Of(above), arguments, Method(_metadata.GetString(method.Name), method.DecodeSignature(_names, null)));
            }
        }
    }

    /// <summary>
    /// The types that others may use, each with its base type (empty where that is not in a contract) and the members that others may use.
    /// </summary>
    internal IEnumerable<(string Type, string Base, HashSet<string> Members, HashSet<string> Virtuals)> Offers()
    {
        foreach (var handle in _metadata.TypeDefinitions)
        {
            var type = _metadata.GetTypeDefinition(handle);
            if ((type.Attributes & TypeAttributes.VisibilityMask) is not (TypeAttributes.Public
                or TypeAttributes.NestedPublic or TypeAttributes.NestedFamily or TypeAttributes.NestedFamORAssem)) continue;

            HashSet<string> members = [], virtuals = [];
            foreach (var method in type.GetMethods().Select(_metadata.GetMethodDefinition))
            {
                if ((method.Attributes & MethodAttributes.MemberAccessMask) is not (MethodAttributes.Public
                    or MethodAttributes.Family or MethodAttributes.FamORAssem)) continue;
                var written = Method(_metadata.GetString(method.Name), method.DecodeSignature(_names, null));
                members.Add(written);
                if (method.Attributes.HasFlag(MethodAttributes.Virtual)) virtuals.Add(written);
            }

            foreach (var field in type.GetFields().Select(_metadata.GetFieldDefinition))
            {
                if ((field.Attributes & FieldAttributes.FieldAccessMask) == FieldAttributes.Public)
                    members.Add(Field(_metadata.GetString(field.Name), field.DecodeSignature(_names, null)));
            }

            // A delegate's constructor and Invoke are runtime methods with ordinary rows, so nothing special is needed for them.
            yield return (_names.Of(handle), BaseOf(type), members, virtuals);
        }
    }

    /// <summary>A member of a generic type as one with these arguments has it.</summary>
    internal static string Close(string member, ImmutableArray<string> arguments)
    {
        // From the last: "!1" is the beginning of "!10". "!!0" belongs to the method and stays.
        for (var i = arguments.Length - 1; i >= 0; i--) member = Regex.Replace(member, $"(?<!!)!{i}", _ => arguments[i]);
        return member;
    }

    private string BaseOf(TypeDefinition type) => type.BaseType.Kind switch
    {
        // An interface. Its handle says that it is a definition, and is none.
        _ when type.BaseType.IsNil => "",
        HandleKind.TypeDefinition => _names.Of((TypeDefinitionHandle)type.BaseType),
        HandleKind.TypeReference => _names.Of((TypeReferenceHandle)type.BaseType),
        _ => "",
    };

    private static string Method(string name, MethodSignature<string> signature)
    {
        var isStatic = signature.Header.IsInstance ? "" : "static ";
        var generic = signature.GenericParameterCount > 0 ? $"``{signature.GenericParameterCount}" : "";
        return $"{isStatic}{signature.ReturnType} {name}{generic}({string.Join(", ", signature.ParameterTypes)})";
    }

    private static string Field(string name, string type) => $"{type} {name}";

    /// <summary>Writes types by name, without assemblies: the point is which assembly has them.</summary>
    private sealed class SignatureNames(MetadataReader metadata) : ISignatureTypeProvider<string, object?>
    {
        internal string Of(TypeReferenceHandle handle)
        {
            var type = metadata.GetTypeReference(handle);
            var name = metadata.GetString(type.Name);
            return type.ResolutionScope.Kind == HandleKind.TypeReference
                ? $"{Of((TypeReferenceHandle)type.ResolutionScope)}/{name}"
                : $"{metadata.GetString(type.Namespace)}.{name}";
        }

        internal string Of(TypeDefinitionHandle handle)
        {
            var type = metadata.GetTypeDefinition(handle);
            var name = metadata.GetString(type.Name);
            return type.GetDeclaringType().IsNil ? $"{metadata.GetString(type.Namespace)}.{name}" : $"{Of(type.GetDeclaringType())}/{name}";
        }

        internal string AssemblyOf(TypeReferenceHandle handle)
        {
            var scope = metadata.GetTypeReference(handle).ResolutionScope;
            return scope.Kind switch
            {
                HandleKind.AssemblyReference => metadata.GetString(metadata.GetAssemblyReference((AssemblyReferenceHandle)scope).Name),
                HandleKind.TypeReference => AssemblyOf((TypeReferenceHandle)scope),
                _ => "",
            };
        }

        /// <summary>The referred type behind a parent or base, and the arguments of a generic one; null for anything else.</summary>
        internal TypeReferenceHandle? ReferredType(EntityHandle handle, out ImmutableArray<string> arguments)
        {
            arguments = [];
            if (handle.IsNil) return null;
            if (handle.Kind == HandleKind.TypeReference) return (TypeReferenceHandle)handle;
            if (handle.Kind != HandleKind.TypeSpecification) return null;
            var blob = metadata.GetBlobReader(metadata.GetTypeSpecification((TypeSpecificationHandle)handle).Signature);
            if (blob.ReadSignatureTypeCode() != SignatureTypeCode.GenericTypeInstance) return null;
            blob.ReadCompressedInteger();
            var generic = blob.ReadTypeHandle();
            if (generic.Kind != HandleKind.TypeReference) return null;
            var decoder = new SignatureDecoder<string, object?>(this, metadata, null);
            var decoded = ImmutableArray.CreateBuilder<string>();
            for (var left = blob.ReadCompressedInteger(); left > 0; left--) decoded.Add(decoder.DecodeType(ref blob));
            arguments = decoded.ToImmutable();
            return (TypeReferenceHandle)generic;
        }

        public string GetPrimitiveType(PrimitiveTypeCode typeCode) => typeCode.ToString();

        public string GetTypeFromDefinition(MetadataReader reader, TypeDefinitionHandle handle, byte rawTypeKind) => Of(handle);

        public string GetTypeFromReference(MetadataReader reader, TypeReferenceHandle handle, byte rawTypeKind) => Of(handle);

        public string GetTypeFromSpecification(MetadataReader reader, object? genericContext, TypeSpecificationHandle handle, byte rawTypeKind) =>
            metadata.GetTypeSpecification(handle).DecodeSignature(this, genericContext);

        public string GetGenericInstantiation(string genericType, ImmutableArray<string> typeArguments) =>
            $"{genericType}<{string.Join(", ", typeArguments)}>";

        public string GetGenericTypeParameter(object? genericContext, int index) => $"!{index}";

        public string GetGenericMethodParameter(object? genericContext, int index) => $"!!{index}";

        public string GetSZArrayType(string elementType) => $"{elementType}[]";

        public string GetArrayType(string elementType, ArrayShape shape) => $"{elementType}[{new string(',', shape.Rank - 1)}]";

        public string GetByReferenceType(string elementType) => $"{elementType}&";

        public string GetPointerType(string elementType) => $"{elementType}*";

        public string GetPinnedType(string elementType) => elementType;

        public string GetModifiedType(string modifier, string unmodifiedType, bool isRequired) =>
            $"{unmodifiedType} {(isRequired ? "modreq" : "modopt")}({modifier})";

        public string GetFunctionPointerType(MethodSignature<string> signature) => Method("*", signature);
    }
}
