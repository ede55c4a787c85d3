package cloudemu

import (
	"fmt"
	"net/http"
)

// apiError is an answer that refuses a call.
type apiError struct {
	status  int // HTTP status
	code    string
	message string
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

func refuse(code, message string) *apiError {
	return &apiError{http.StatusBadRequest, code, message}
}

func notFound(code, message string) *apiError {
	return &apiError{http.StatusNotFound, code, message}
}

func missing(param string) *apiError {
	return refuse("MissingParameter", fmt.Sprintf("The input parameter %q that is mandatory for processing this request is not supplied.", param))
}
