package alibaba

import (
	"context"
	stderrors "errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
)

// Error is a call that failed. It carries nothing of the request but the action, and no secret.
type Error struct {
	// Action is the API's name, Code the vendor's error code, "" where no sensible answer came.
	Action, Code string
	// Message is the vendor's, or says what went wrong on the way.
	Message string
	// RequestID is what the vendor's support asks for.
	RequestID string
	// HTTP is the status, 0 without an answer.
	HTTP  int
	cause error
}

// Error implements error.
func (e *Error) Error() string {
	text := e.Action + ": "
	if e.Code != "" {
		text += e.Code + ": "
	}
	text += e.Message
	if e.HTTP != 0 && e.Code == "" {
		text += fmt.Sprintf(" (HTTP status %d)", e.HTTP)
	}
	if e.RequestID != "" {
		text += " (request " + e.RequestID + ")"
	}
	return text
}

// Unwrap returns the cause where that is a context's error, so that callers can tell a stop from a fault.
func (e *Error) Unwrap() error { return e.cause }

// kind says what a failed call means for the next step.
type kind uint8

const (
	// refused for good: the same call would be refused again.
	refused kind = iota
	// busy: nothing was done, the same call may succeed later.
	busy
	// throttled: as busy, and calls come too fast.
	throttled
	// unclear: it may have been done; look before repeating.
	unclear
	// denied: our role may not.
	denied
	// badKey: the key is expired or unknown.
	badKey
	// duplicate: an entry for that destination is there.
	duplicate
	// notFound: the entry is not there.
	notFound
	// unchanged: it is already so.
	unchanged
	// full: the table takes no more entries.
	full
	// wrongCIDR: the batch call refuses destinations which the single call takes.
	wrongCIDR
)

// byCode are the documented codes of the route calls, in both vocabularies, as spelled on the wire.
// https://www.alibabacloud.com/help/en/vpc/developer-reference/api-vpc-2016-04-28-createrouteentry
var byCode = map[string]kind{
	"TaskConflict": busy, "OperationConflict": busy, "IncorrectRouteEntryStatus": busy, "IncorrcetRouteEntryStatus": busy,
	"IncorrectVpcStatus": busy, "IncorrectVSwitchStatus": busy, "IncorrectHaVipStatus": busy, "IncorrectInstanceStatus": busy,
	"InvalidVBRStatus": busy, "LastTokenProcessing": busy, "OperationFailed.DistibuteLock": busy, "SystemBusy": busy,
	"SignatureNonceUsed": busy, "VPC_ROUTE_ENTRY_STATUS_ERROR": busy, "VPC_TASK_CONFLICT": busy,
	"ServiceUnavailable": unclear, "UnknownError": unclear, "InternalError": unclear, "VPC.ERROR": unclear,
	"InvalidCIDRBlock.Duplicate": duplicate, "InvalidRouteEntry.Duplicate": duplicate, "RouteConflict.AlreadyExist": duplicate,
	"Duplicated.VpcNextHop": duplicate, "RouterEntryConflict.Duplicated": duplicate,
	"VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE": duplicate,
	"InvalidRouteEntry.NotFound":           notFound, "InvalidRouteEntryId.NotFound": notFound, "VPC_ROUTER_ENTRY_NOT_EXIST": notFound,
	"OperationDenied.NextHopNotChanged": unchanged,
	"VPC_ROUTE_ENTRY_QUOTA_EXCEEDED":    full,
	"VPC_CIDR_BLOCK_INVALID":            wrongCIDR,
	"Forbidden":                         denied, "NoPermission": denied,
	"InvalidTimeStamp.Expired": badKey, "SignatureDoesNotMatch": badKey,
}

func (e *Error) kind() kind {
	if k, ok := byCode[e.Code]; ok {
		return k
	}
	has := func(prefix string) bool { return strings.HasPrefix(e.Code, prefix) }
	switch {
	case strings.Contains(e.Code, "Throttling"):
		return throttled
	case has("IncorrectStatus."):
		return busy
	case has("QuotaExceeded"), has("CountLimitExceed"):
		return full
	case has("Forbidden."), has("NoPermission."):
		return denied
	case has("InvalidSecurityToken."), has("InvalidAccessKeyId."):
		return badKey
	case e.Code == "", e.HTTP >= http.StatusInternalServerError:
		return unclear
	}
	return refused
}

// kindOf is the kind of any error of a call.
func kindOf(err error) kind {
	var e *Error
	if stderrors.As(err, &e) {
		return e.kind()
	}
	return refused
}

// maxMessage is how much of a vendor's message is passed on, in bytes.
const maxMessage = 300

// convert makes an Error of what the SDK returned. The SDK's own texts hold URLs, headers and the string to sign.
func (c *client) convert(action string, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Action: action}
	var server *errors.ServerError
	var viaURL *url.Error
	switch {
	case stderrors.As(err, &server):
		e.Code, e.Message, e.HTTP, e.RequestID = server.ErrorCode(), server.Message(), server.HttpStatus(), server.RequestId()
		if e.Code == "" {
			e.Message = "the answer is not from the API; is a proxy in between?"
		}
		if e.Code == "SignatureDoesNotMatch" {
			e.Message = "the signature does not match: the access key's secret is wrong"
		}
	case stderrors.As(err, &viaURL):
		e.Message = viaURL.Err.Error()
	default:
		e.Message = err.Error()
	}
	for _, stop := range []error{context.Canceled, context.DeadlineExceeded} {
		if stderrors.Is(err, stop) {
			e.cause = stop
		}
	}
	e.Message = c.creds.scrub(e.Message)
	if len(e.Message) > maxMessage {
		e.Message = strings.ToValidUTF8(e.Message[:maxMessage], "") + "..."
	}
	return e
}
